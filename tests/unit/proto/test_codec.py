from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.errors import RecordError
from overmesh.model import Endpoint, FastpathPeer, FastpathState, Mode, Problem, Suite
from overmesh.proto import codec, fastpath_pb2, mesh_pb2

items = st.dictionaries(st.text(max_size=40), st.binary(max_size=400), max_size=8)
revisions = st.integers(0, 2**63)


def encoded(values: dict[str, bytes]) -> list[bytes]:
    return [codec.encode_item(key, signed) for key, signed in values.items()]


@given(items, revisions, revisions, st.lists(st.text(max_size=10), max_size=4))
def test_a_delta_made_of_ready_bytes_is_what_protobuf_reads(
    values: dict[str, bytes], start: int, end: int, removed: list[str]
) -> None:
    data = codec.encode_delta(start, end, b"d" * 32, removed, encoded(values))
    delta = mesh_pb2.WatchReply.FromString(data).delta
    assert (delta.from_revision, delta.to_revision, delta.digest) == (start, end, b"d" * 32)
    assert list(delta.removed) == removed
    assert codec.item_values(delta.items) == values


@given(items, revisions, st.integers(0, 9))
def test_a_snapshot_made_of_ready_bytes_is_what_protobuf_reads(
    values: dict[str, bytes], revision: int, chunk: int
) -> None:
    data = codec.encode_snapshot(revision, b"d" * 32, chunk, 10, encoded(values))
    snapshot = mesh_pb2.WatchReply.FromString(data).snapshot
    assert (snapshot.revision, snapshot.chunk, snapshot.chunks) == (revision, chunk, 10)
    assert codec.item_values(snapshot.items) == values


def test_a_heartbeat_tells_where_the_map_stands() -> None:
    reply = mesh_pb2.WatchReply.FromString(codec.encode_heartbeat(9, b"x"))
    assert (reply.heartbeat.revision, reply.heartbeat.digest) == (9, b"x")


def test_problems_survive_the_way() -> None:
    problems = (Problem("node/a", "forged"), Problem("route", "taken"))
    assert codec.problem_values(codec.problem_messages(problems)) == problems


def test_a_stranger_has_no_say_over_terminals_and_memory() -> None:
    said = Problem("route", "\x1b]0;owned\x07 taken\n" + "x" * 1000)
    (read, *_) = all_read = codec.problem_values(codec.problem_messages([said] * 1000))
    assert read.reason.startswith("�]0;owned� taken�x")
    assert (len(read.reason), len(all_read)) == (codec.MAX_TEXT, codec.MAX_PROBLEMS)


def test_a_change_of_the_fastpath_names_what_is_different() -> None:
    a, b, c = (
        FastpathPeer(name, name, (), (Endpoint(ip_address("192.0.2.1"), 7),), Mode.SEALED, b"k" * 32)
        for name in ("a", "b", "c")
    )
    before = FastpathState(5, "om0", 1420, 7, 51820, (a, b, c), b"k" * 32, lanes=4)
    moved = replace(b, endpoints=(Endpoint(ip_address("192.0.2.2"), 7),))
    after = replace(before, revision=6, peers=(replace(a, id="d"), a, moved))
    request = codec.change_request(before, b"digest", after)
    assert request.desired == codec.apply_request(replace(after, peers=(after.peers[0], moved)))
    assert (list(request.removed), request.base) == (["c"], b"digest")
    nothing = codec.change_request(after, b"", replace(after, mtu=1000))
    assert nothing.desired == codec.apply_request(replace(after, mtu=1000, peers=()))
    assert not nothing.removed


def test_the_fastpath_gets_the_whole_state() -> None:
    peer = FastpathPeer(
        id="p",
        name="b",
        prefixes=(ip_network("10.77.0.2/32"), ip_network("fd00::2/128")),
        endpoints=(Endpoint(ip_address("192.0.2.1"), 6081), Endpoint(ip_address("2001:db8::1"), 6082)),
        mode=Mode.PLAIN,
    )
    request = codec.apply_request(FastpathState(5, "om0", 1420, 7, 6081, (peer,)))
    assert request == fastpath_pb2.ApplyRequest(
        revision=5,
        tun="om0",
        mtu=1420,
        network_number=7,
        port=6081,
        peers=[
            fastpath_pb2.Peer(
                id="p",
                name="b",
                prefixes=["10.77.0.2/32", "fd00::2/128"],
                endpoints=["192.0.2.1:6081", "[2001:db8::1]:6082"],
                mode=fastpath_pb2.Mode.MODE_PLAIN,
                suite=fastpath_pb2.Suite.SUITE_CHACHA,
                lanes=1,
            )
        ],
        lanes=1,
    )


def test_the_fastpath_gets_what_it_seals_with() -> None:
    peer = FastpathPeer(
        id="p",
        name="b",
        prefixes=(),
        endpoints=(),
        mode=Mode.SEALED,
        public_key=b"p" * 32,
        suite=Suite.AES,
        keepalive_s=25,
        lanes=2,
        stock=True,
    )
    request = codec.apply_request(FastpathState(5, "om0", 1420, 7, 51820, (peer,), b"k" * 32, lanes=4))
    assert (request.private_key, request.lanes) == (b"k" * 32, 4)
    [sent] = request.peers
    assert (sent.mode, sent.public_key, sent.suite) == (
        fastpath_pb2.MODE_SEALED,
        b"p" * 32,
        fastpath_pb2.SUITE_AES,
    )
    assert (sent.keepalive_s, sent.lanes, sent.stock) == (25, 2, True)


def test_a_port_may_be_unknown_where_that_is_allowed_and_nowhere_else() -> None:
    message = mesh_pb2.Endpoint(address="192.0.2.1")
    assert codec.endpoint_value(message, unknown_port=True) == Endpoint(ip_address("192.0.2.1"), 0)
    with pytest.raises(RecordError, match="port 0 is not between 1 and 65535"):
        codec.endpoint_value(message)
    with pytest.raises(RecordError, match="port 65536"):
        codec.endpoint_value(mesh_pb2.Endpoint(address="192.0.2.1", port=65536), unknown_port=True)


def test_modes_that_are_not_known_are_none() -> None:
    assert codec.mode_values([2, 7, 0, 1, 2]) == (Mode.PLAIN, Mode.SEALED)
