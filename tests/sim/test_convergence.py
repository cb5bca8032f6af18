"""Whatever the wires do, all maps become the same, and are known to be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overmesh.controller.session import ACK_TIMEOUT, HEARTBEAT
from overmesh.model import Node, node_key, revoked_key
from tests.sim.world import Faults, Member, World

# On good wires: the agent's longest wait before it tries again, then one bundle owed an ack, then the rest.
SETTLE = 30 + ACK_TIMEOUT + HEARTBEAT + 15


def live(world: World, seconds: float, size: int) -> None:
    """Let people and hosts do what they do, about three things a second."""
    until = world.now + seconds
    while world.now < until:
        world.run(world.random.random() * 0.6)
        members = list(world.members.values())
        choice = world.random.random()
        if len(members) < size // 2 or (choice < 0.3 and len(members) < size):
            world.join()
        elif choice < 0.45:
            world.remove(world.random.choice(members))
        elif choice < 0.85:
            world.move(world.random.choice(members))
        elif choice < 0.93:
            member = world.random.choice(members)
            member.restart(member.replica.held())
        elif choice < 0.98:
            world.forge()
        else:
            world.start_controller()


def check(world: World) -> None:
    """Compare what the agents make of their maps, not only the bytes."""
    truth = {
        record.name: record
        for record in world.parts.mirror.view("mesh").records.values()
        if isinstance(record, Node)
    }
    assert set(truth) == {member.host.name for member in world.members.values()}
    for member in world.members.values():
        view = member.replica.view(world.clock())
        assert {peer.node.name: peer.node for peer in view.map.peers} == {
            name: node for name, node in truth.items() if name != member.host.name
        }
        refused = world.parts.mirror.view("mesh").refused
        assert {problem.subject for problem in view.problems} == set(refused)


@pytest.mark.parametrize("seed", range(2))
def test_fifty_agents_on_bad_wires(seed: int) -> None:
    world = World(seed, Faults(loss=0.05, double=0.1, breaks=0.02, delay=0.8))
    for _ in range(50):
        world.join()
    live(world, 100, 50)
    world.faults = Faults()
    world.settle(SETTLE)
    check(world)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 5),
)
def test_a_few_agents_on_wires_of_any_kind(
    seed: int, loss: float, double: float, breaks: float, delay: float
) -> None:
    world = World(seed, Faults(loss, double, breaks, delay))
    live(world, 20, 6)
    world.faults = Faults()
    world.settle(SETTLE)
    check(world)


def test_on_good_wires_nobody_has_to_start_over() -> None:
    world = World(5, Faults(delay=0))
    live(world, 30, 12)
    world.settle(SETTLE)
    check(world)
    assert [member.resyncs for member in world.members.values()] == [0] * len(world.members)


def test_what_happens_follows_from_the_seed() -> None:
    def story() -> tuple[float, list[tuple[str, int]]]:
        world = World(7, Faults(loss=0.1, double=0.1, breaks=0.05, delay=0.5))
        live(world, 10, 8)
        members = world.members.values()
        return world.now, [(member.host.id, member.replica.revision) for member in members]

    assert story() == story()


def test_two_hundred_joins_and_two_hundred_removals() -> None:
    world = World(1, Faults(delay=0.3))
    witness = world.join()
    seen: list[Member] = []
    for _ in range(200):
        seen.append(world.join())
        world.turn()
        if len(seen) > 20:
            world.remove(seen.pop(0))
    world.settle(SETTLE)
    check(world)
    for member in seen:
        world.remove(member)
        world.turn()
    world.settle(SETTLE)
    check(world)
    gone = {revoked_key(revocation.node_id) for revocation in world.parts.revocations.known("mesh")}
    assert len(gone) == 200
    assert set(witness.replica.held().items) == gone | {
        "network",
        node_key(witness.host.id),
        f"endpoints/{witness.host.id}",
    }
    assert len(world.parts.mirror.held("addresses", "mesh")) == 2


def test_a_change_reaches_everyone_within_two_batches() -> None:
    world = World(2, Faults(delay=0.05))
    members = [world.join() for _ in range(50)]
    world.settle(SETTLE)
    for _ in range(10):
        world.move(members[0])
        assert world.settle(SETTLE) <= 0.3


def test_a_restart_of_the_controller_costs_no_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3)
    for _ in range(50):
        world.join()
    world.settle(SETTLE)
    world.forge()
    world.settle(SETTLE)
    world.start_controller()
    here = world.parts.mirror.view("mesh").map
    monkeypatch.setattr(here, "snapshot", lambda: pytest.fail("a snapshot was sent"))
    world.settle(SETTLE)
    check(world)


def test_a_removed_agent_hears_so_and_the_others_forget_it() -> None:
    world = World(4)
    members = [world.join() for _ in range(5)]
    world.settle(SETTLE)
    gone = members[0]
    streams = world.streams
    world.remove(gone)
    for _ in range(4):
        world.turn()
        gone.turn()
    assert gone.removed
    assert len(streams) == 5
    world.settle(SETTLE)
    check(world)
