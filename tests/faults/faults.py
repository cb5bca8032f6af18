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


@contextmanager
def two_at_once(cluster: Cluster, dice: random.Random) -> Iterator[str]:
    """Harm a member of etcd and a controller; the controller comes back while the member is still away."""
    member = dice.choice((member_killed, member_frozen, member_mute))
    controller = dice.choice((controller_killed, controller_frozen))
    with member(cluster, dice) as one, controller(cluster, dice) as other:
        yield f"{one}, {other}"


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


@contextmanager
def controller_cut_off(cluster: Cluster, dice: random.Random) -> Iterator[str]:
    """Part a controller from etcd; agents and clients reach it, and are told what it knows."""
    controller = dice.choice(cluster.controllers)
    with _parted([controller], cluster.members) as what:
        yield what
        assert "nodes" in controller.answer("ListNodes"), f"{controller.name} does not serve its last map"
        refusal = controller.answer("CreateToken")
        assert "UNAVAILABLE etcd://" in refusal, f"{controller.name} does not refuse in words: {refusal}"


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
    "two at once": two_at_once,
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
_PAUSE = (0.5, 2.0)
# Seconds; the longest of a short run is shorter, so that every kind has its turn.
_SHORTEST, _LONGEST = 3.0, 20.0
# About how long it takes until all is up again.
_RECOVERY = 3.0


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule: which, for how long, and how long it is quiet afterwards (seconds)."""

    kind: str
    seconds: float
    pause: float


def schedule(dice: random.Random, seconds: float, only: Collection[str] = ()) -> list[Step]:
    """Return what to do for so long: every kind once, in a new order, before any comes again.

    Args:
        dice: choose.
        seconds: about how long it takes in all.
        only: of these kinds; empty: of all.

    The last one is of those that may be survived, if there is one: after the others agents come back
    with a jitter that grows with the outage, and who measures how soon would measure that.

    """
    steps: list[Step] = []
    longest = min(_LONGEST, max(5.0, seconds / 20))
    left = seconds
    while left > 0:
        kinds = [kind for kind in FAULTS if not only or kind in only]
        dice.shuffle(kinds)
        for kind in kinds:
            step = Step(kind, dice.uniform(_SHORTEST, longest), dice.uniform(*_PAUSE))
            left -= step.seconds + _RECOVERY + step.pause
            if left > 0 or not steps:
                steps.append(step)
    while steps[-1].kind in BEYOND and any(step.kind in SURVIVABLE for step in steps):
        steps.pop()
    return steps
