from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.controller import peermap
from overmesh.controller.peermap import NetworkMap, Position
from overmesh.model import Digest
from overmesh.proto import mesh_pb2

Items = dict[str, bytes]
KEYS = st.sampled_from(["network", *(f"{kind}/{n}" for kind in ("node", "endpoints") for n in range(6))])
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=20), min_size=1, max_size=4)


def test_nothing_at_all_is_one_empty_chunk() -> None:
    (message,) = NetworkMap(7, {}).snapshot()
    snapshot = mesh_pb2.WatchReply.FromString(message).snapshot
    assert (snapshot.revision, snapshot.chunk, snapshot.chunks, len(snapshot.items)) == (7, 0, 1, 0)


def received(here: NetworkMap, held: Position, items: Items) -> tuple[Position, Items]:
    """Return what an agent holds after it has been brought to the head."""
    delta = here.since(held)
    if delta is None:
        return _snapshot(here)
    message = mesh_pb2.WatchReply.FromString(delta).delta
    assert message.from_revision == held.revision
    assert not set(message.removed) & {item.key for item in message.items}
    after = {key: signed for key, signed in items.items() if key not in message.removed}
    after |= {item.key: item.signed for item in message.items}
    return Position(message.to_revision, message.digest), after


def _snapshot(here: NetworkMap) -> tuple[Position, Items]:
    items: Items = {}
    chunks = [mesh_pb2.WatchReply.FromString(message).snapshot for message in here.snapshot()]
    for number, chunk in enumerate(chunks):
        assert (chunk.chunk, chunk.chunks, chunk.revision) == (number, len(chunks), here.head.revision)
        items |= {item.key: item.signed for item in chunk.items}
    return Position(chunks[0].revision, chunks[0].digest), items


@given(st.lists(st.tuples(CHANGES, st.integers(1, 3)), max_size=25), st.integers(1, 30), st.data())
def test_deltas_from_anywhere_lead_to_what_a_snapshot_says(
    history: list[tuple[Mapping[str, bytes | None], int]], kept: int, data: st.DataObject
) -> None:
    here = NetworkMap(1, {"network": b"n"}, history=kept)
    agents = [_snapshot(here) for _ in range(3)]
    revision = 1
    for changes, step in history:
        revision += step
        here.apply(revision, changes)
        lucky = data.draw(st.integers(0, 2))
        agents[lucky] = received(here, *agents[lucky])
    for position, items in agents:
        at, now = received(here, position, items)
        assert at == here.head
        assert now == here.items == _snapshot(here)[1]
        assert at.digest == Digest.of(now).to_bytes()


@given(st.lists(CHANGES, min_size=1, max_size=10))
def test_only_what_was_touched_travels(history: list[Mapping[str, bytes | None]]) -> None:
    here = NetworkMap(1, {"node/untouched": b"u"})
    start = here.head
    for revision, changes in enumerate(history, 2):
        here.apply(revision, changes)
    delta = mesh_pb2.WatchReply.FromString(here.since(start) or b"").delta
    touched = {key for changes in history for key in changes}
    assert {item.key for item in delta.items} | set(delta.removed) == touched


def test_the_same_step_is_encoded_once() -> None:
    here = NetworkMap(1, {})
    start = here.head
    here.apply(2, {"network": b"n"})
    assert here.since(start) is here.since(start)
    assert here.snapshot() is here.snapshot()


def test_a_revision_between_two_changes_is_known() -> None:
    here = NetworkMap(1, {})
    here.apply(10, {"network": b"n"})
    assert here.position(9) == Position(9, Digest().to_bytes())
    assert here.position(11) is None
    assert here.position(0) is None


def test_a_wrong_digest_gets_no_delta() -> None:
    here = NetworkMap(1, {})
    here.apply(2, {"network": b"n"})
    assert here.since(Position(1, b"wrong")) is None
    assert here.since(Position(2, Digest().to_bytes())) is None


def test_who_holds_the_same_under_an_older_revision_needs_no_snapshot() -> None:
    """So it is for all agents after the controller was restarted."""
    here = NetworkMap(40, {"network": b"n"})
    delta = mesh_pb2.WatchReply.FromString(here.since(Position(12, here.head.digest)) or b"").delta
    assert (delta.from_revision, delta.to_revision, len(delta.items)) == (12, 40, 0)
    assert here.since(Position(41, here.head.digest)) is None


def test_history_is_bounded() -> None:
    here = NetworkMap(1, {}, history=5)
    start = here.head
    for revision in range(2, 100):
        here.apply(revision, {"network": str(revision).encode()})
        assert len(here._log) <= 10
    assert here.since(start) is None


def test_chunks_stay_below_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peermap, "CHUNK", 1000)
    here = NetworkMap(1, {f"node/{number}": bytes(90) for number in range(100)} | {"node/big": bytes(5000)})
    sizes = [len(message) for message in here.snapshot()]
    assert len(sizes) > 10
    assert sorted(sizes)[-2] < 1100  # all but that with the one item that is larger by itself
    assert _snapshot(here) == (here.head, here.items)
