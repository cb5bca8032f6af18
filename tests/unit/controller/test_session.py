import pytest

from overmesh.controller.peermap import NetworkMap, Position, Tally
from overmesh.controller.session import ACK_TIMEOUT, HEARTBEAT, SPACING, SPACING_PER_ITEM, Session
from overmesh.errors import UnreachableError
from overmesh.proto import mesh_pb2

NOTHING = Position(0, b"")


def sent(session: Session, now: float) -> list[mesh_pb2.WatchReply]:
    replies = [mesh_pb2.WatchReply.FromString(message) for message in session.poll(now)]
    session.written(now)
    return replies


def kinds(session: Session, now: float) -> list[str | None]:
    return [reply.WhichOneof("body") for reply in sent(session, now)]


@pytest.fixture
def here() -> NetworkMap:
    return NetworkMap(5, {"network": b"n", "node/a": b"a"})


def in_step(here: NetworkMap) -> Session:
    session = Session(here, here.head, 0)
    assert kinds(session, 0) == ["heartbeat"]
    return session


def test_who_has_nothing_gets_a_snapshot_and_counts_once_it_acked(here: NetworkMap) -> None:
    session = Session(here, NOTHING, 0)
    assert kinds(session, 0) == ["snapshot"]
    assert (session.acked, session.in_step) == (0, False)
    session.on_ack(here.head)
    assert (session.acked, session.in_step) == (5, True)


def test_who_is_at_the_head_hears_so_at_once_then_every_ten_seconds(here: NetworkMap) -> None:
    session = in_step(here)
    assert session.acked == 5
    assert session.deadline() == HEARTBEAT
    assert kinds(session, HEARTBEAT - 0.01) == []
    assert kinds(session, HEARTBEAT) == ["heartbeat"]
    assert kinds(session, HEARTBEAT) == []


def test_who_knows_a_later_revision_for_the_same_map_is_in_step_and_goes_on_from_there(
    here: NetworkMap,
) -> None:
    """It comes from a controller that began to follow the store after the last change of this map."""
    session = Session(here, Position(8, here.head.digest), 0)
    assert (session.in_step, session.acked) == (True, 8)
    assert kinds(session, 0) == ["heartbeat"]
    here.apply(9, {"node/b": b"b"})
    [reply] = sent(session, 1)
    assert (reply.delta.from_revision, reply.delta.to_revision) == (8, 9)


def test_a_wrong_digest_at_hello_gets_a_snapshot(here: NetworkMap) -> None:
    session = Session(here, Position(5, b"x"), 0)
    assert session.acked == 0
    assert kinds(session, 0) == ["snapshot"]


def test_the_first_change_goes_at_once_the_next_after_a_pause(here: NetworkMap) -> None:
    session = in_step(here)
    here.apply(6, {"node/b": b"b"})
    assert kinds(session, 1.0) == ["delta"]
    session.on_ack(here.head)
    here.apply(7, {"node/c": b"c"})
    assert kinds(session, 1.0 + SPACING - 0.01) == []
    assert session.deadline() == 1.0 + SPACING
    assert kinds(session, 1.0 + SPACING) == ["delta"]


def test_the_larger_the_map_the_longer_changes_are_gathered() -> None:
    large = NetworkMap(5, {f"node/{number}": b"n" for number in range(20_000)})
    session = in_step(large)
    large.apply(6, {"node/1": b"moved"})
    assert kinds(session, 1.0) == ["delta"]
    session.on_ack(large.head)
    large.apply(7, {"node/2": b"moved"})
    large.apply(8, {"node/3": b"moved"})
    assert session.deadline() == 1.0 + 20_000 * SPACING_PER_ITEM
    assert kinds(session, session.deadline() - 0.01) == []
    assert kinds(session, session.deadline()) == ["delta"]
    assert large.tally.collapsed == 1


def test_changes_collapse_behind_the_one_in_flight(here: NetworkMap) -> None:
    session = in_step(here)
    here.apply(6, {"node/b": b"b"})
    assert kinds(session, 1) == ["delta"]
    at_six = here.head
    here.apply(7, {"node/c": b"c"})
    here.apply(8, {"node/b": None})
    assert kinds(session, 2) == []
    assert session.acked == 5
    session.on_ack(at_six)
    (reply,) = sent(session, 2)
    assert (reply.delta.from_revision, reply.delta.to_revision) == (6, 8)
    assert [item.key for item in reply.delta.items] == ["node/c"]
    assert list(reply.delta.removed) == ["node/b"]


def test_a_wrong_digest_in_an_ack_costs_a_snapshot_ever_later(here: NetworkMap) -> None:
    session = Session(here, NOTHING, 0)
    now, pauses = 0.0, []
    for number in range(1, 10):
        assert kinds(session, now) == ["snapshot"]
        session.on_ack(Position(5, b"wrong"))
        assert (session.misses, session.acked, session.in_step) == (number, 0, False)
        pauses.append(round(session.deadline() - now, 6))
        now = session.deadline()
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (SPACING, 10)
    assert kinds(session, now) == ["snapshot"]
    session.on_ack(here.head)
    assert session.in_step


def test_no_ack_ends_the_stream(here: NetworkMap) -> None:
    session = Session(here, NOTHING, 0)
    assert session.poll(0)
    session.written(7)
    assert session.deadline() == 7 + ACK_TIMEOUT
    assert session.poll(7 + ACK_TIMEOUT - 0.1) == ()
    with pytest.raises(UnreachableError, match="no ack"):
        session.poll(7 + ACK_TIMEOUT)


def test_a_repeated_ack_changes_nothing(here: NetworkMap) -> None:
    session = in_step(here)
    old = here.head
    here.apply(6, {"node/b": b"b"})
    assert kinds(session, 1) == ["delta"]
    session.on_ack(old)
    assert kinds(session, 2) == []
    session.on_ack(here.head)
    session.on_ack(here.head)
    assert session.in_step
    assert session.misses == 0


def test_an_unasked_ack_of_a_known_revision_with_a_wrong_digest_is_noticed(here: NetworkMap) -> None:
    session = in_step(here)
    session.on_ack(Position(5, b"flipped"))
    assert session.misses == 1
    assert kinds(session, 1) == ["snapshot"]


def test_an_ack_of_an_unknown_revision_counts_for_nothing(here: NetworkMap) -> None:
    session = Session(here, NOTHING, 0)
    session.on_ack(Position(99, b"?"))
    assert session.acked == 0
    assert kinds(session, 0) == ["snapshot"]


def test_what_happens_is_counted(here: NetworkMap) -> None:
    session = Session(here, NOTHING, 0)
    sent(session, 0)
    session.on_ack(here.head)
    for revision in (6, 7, 8):
        here.apply(revision, {"node/b": b"%d" % revision})
    assert kinds(session, 1) == ["delta"]
    session.on_ack(Position(8, b"wrong"))
    assert kinds(session, 1 + HEARTBEAT) == ["snapshot"]
    session.on_ack(here.head)
    assert kinds(session, 1 + 2 * HEARTBEAT) == ["heartbeat"]
    assert here.tally == Tally(
        encoded=2 + 3, deltas=1, snapshots=2, heartbeats=1, collapsed=2, acks=3, misses=1
    )
