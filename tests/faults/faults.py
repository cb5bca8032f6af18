"""Every kind of harm, as a block: it begins with the block and ends with it.

Each takes the cluster and the dice, and yields what it does, for people. SURVIVABLE ones leave most of
etcd and at least one controller at work; BEYOND are those in which changes have to wait.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from tests.faults.cluster import Cluster, Machine
from tests.netns.lab import until

Fault = Callable[[Cluster, random.Random], AbstractContextManager[str]]


# Processes.


@contextmanager
def _killed(machine: Machine) -> Iterator[str]:
    machine.kill()
    try:
        yield f"{machine.name} killed"
    finally:
        machine.start()


@contextmanager
def _frozen(machine: Machine) -> Iterator[str]:
    machine.freeze()
    try:
        yield f"{machine.name} frozen"
    finally:
        machine.thaw()


def member_killed(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Kill a member of etcd."""
    return _killed(dice.choice(cluster.members))


def member_frozen(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Freeze a member of etcd."""
    return _frozen(dice.choice(cluster.members))


def controller_killed(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Kill a controller."""
    return _killed(dice.choice(cluster.controllers))


def controller_frozen(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Freeze a controller."""
    return _frozen(dice.choice(cluster.controllers))


@contextmanager
def all_of(
    harm: Callable[[Machine], AbstractContextManager[str]], machines: Sequence[Machine]
) -> Iterator[str]:
    """Do the same to all."""
    with ExitStack() as undo:
        yield ", ".join([undo.enter_context(harm(machine)) for machine in machines])


def two_controllers_killed(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Leave one controller."""
    return all_of(_killed, dice.sample(cluster.controllers, 2))


def store_killed(cluster: Cluster, _dice: random.Random) -> AbstractContextManager[str]:
    """Leave no etcd."""
    return all_of(_killed, cluster.members)


def store_frozen(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Leave a minority of etcd."""
    return all_of(_frozen, dice.sample(cluster.members, 2))


def controllers_killed(cluster: Cluster, _dice: random.Random) -> AbstractContextManager[str]:
    """Leave no controller."""
    return all_of(_killed, cluster.controllers)


# Wires.


@contextmanager
def _parted(ones: Sequence[Machine], others: Sequence[Machine], *, ways: int = 2) -> Iterator[str]:
    """Lose what ones send to others, and the other way round too."""
    cuts = [(one, others) for one in ones] + [(other, ones) for other in others] * (ways == 2)
    for machine, far in cuts:
        machine.cut(far)
    try:
        arrow = "<-/->" if ways == 2 else "-/->"
        yield f"{' '.join(one.name for one in ones)} {arrow} {' '.join(other.name for other in others)}"
    finally:
        for machine, far in cuts:
            machine.mend(far)


def _others(cluster: Cluster, *but: Machine) -> list[Machine]:
    return [machine for machine in cluster.machines if machine not in but]


def member_cut_off(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Part a member of etcd from the other two; controllers reach it, and it has no quorum."""
    member = dice.choice(cluster.members)
    return _parted([member], [other for other in cluster.members if other is not member])


def member_mute(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Lose all that a member of etcd sends, and nothing that it is sent."""
    member = dice.choice(cluster.members)
    return _parted([member], _others(cluster, member), ways=1)


def controller_cut_off(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Part a controller from etcd; agents and clients reach it."""
    return _parted([dice.choice(cluster.controllers)], cluster.members)


def split(cluster: Cluster, dice: random.Random) -> AbstractContextManager[str]:
    """Part a member of etcd and a controller from all others."""
    here: list[Machine] = [dice.choice(cluster.members), dice.choice(cluster.controllers)]
    return _parted(here, _others(cluster, *here))


# Disks.


@contextmanager
def disk_full(cluster: Cluster, dice: random.Random) -> Iterator[str]:
    """Leave a member of etcd no space on its disk; it may end, and is started again when there is some."""
    member = dice.choice(cluster.members)
    member.fill()
    try:
        yield f"disk of {member.name} full"
    finally:
        member.clear()
        if not member.running:
            member.start()


@contextmanager
def no_space(cluster: Cluster, dice: random.Random) -> Iterator[str]:
    """Use up etcd's own quota: it takes no change before an operator has made room."""
    member = dice.choice(cluster.members)
    said = str(member.operate("stuff").get("error", ""))
    try:
        yield f"quota of etcd used up ({said.rpartition(': ')[2]})"
    finally:
        for one in cluster.members:
            one.operate("free")
        until(lambda: member.operate("disarm").get("alarms") == 0, "the alarm ends")


# Clocks.


@contextmanager
def clock_jumped(cluster: Cluster, dice: random.Random) -> Iterator[str]:
    """Turn a controller's clock by hours, and back; half of the time it starts with it as well."""
    controller = dice.choice(cluster.controllers)
    hours = dice.choice((-30, -3, 2, 30))
    controller.turn_clock(hours * 3600)
    if restarted := dice.random() < 0.5:
        controller.kill()
        controller.start()
    try:
        yield f"clock of {controller.name} {hours:+} h{', restarted' if restarted else ''}"
    finally:
        controller.turn_clock(0)


# When.

SURVIVABLE: Mapping[str, Fault] = {
    "member killed": member_killed,
    "member frozen": member_frozen,
    "member cut off": member_cut_off,
    "member mute": member_mute,
    "disk full": disk_full,
    "controller killed": controller_killed,
    "two controllers killed": two_controllers_killed,
    "controller frozen": controller_frozen,
    "controller cut off": controller_cut_off,
    "split": split,
    "clock jump": clock_jumped,
}
BEYOND: Mapping[str, Fault] = {
    "etcd killed": store_killed,
    "quorum frozen": store_frozen,
    "etcd full": no_space,
    "controllers killed": controllers_killed,
}
FAULTS = {**SURVIVABLE, **BEYOND}
_PAUSE = (1.0, 4.0)
_LENGTH = (4.0, 12.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule: which, for how long, and how long it is quiet afterwards (seconds)."""

    kind: str
    seconds: float
    pause: float


def schedule(dice: random.Random, seconds: float, only: Collection[str] = ()) -> Iterator[Step]:
    """Yield what to do for so long: every kind once, in a new order, before any comes again.

    What has to wait during a fault BEYOND is not the last thing that happens.
    """
    left = seconds
    while left > 0:
        kinds = [kind for kind in FAULTS if not only or kind in only]
        dice.shuffle(kinds)
        if kinds[-1] in BEYOND:
            kinds.insert(0, kinds.pop())
        for kind in kinds:
            if left <= 0:
                return
            step = Step(kind, dice.uniform(*_LENGTH), dice.uniform(*_PAUSE))
            left -= step.seconds + step.pause
            yield step
