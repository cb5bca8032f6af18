from ipaddress import ip_address, ip_network

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from overmesh.errors import RecordError
from overmesh.model import (
    Controller,
    Endpoint,
    Mode,
    Network,
    Node,
    NodeEndpoints,
    Record,
    Revocation,
    Root,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.signed import map_key, read, sign, verify

ROOT = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())

addresses = st.ip_addresses()
ranges = st.ip_addresses().map(ip_network)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
counts = st.integers(0, 2**63 - 1)
networks = st.builds(
    Network,
    name=names,
    number=st.integers(1, 2**24 - 1),
    ranges=st.lists(ranges, max_size=2).map(tuple),
    mode=st.sampled_from(Mode),
    mtu=st.integers(0, 2**32 - 1),
    serial=counts,
)
nodes = st.builds(
    Node,
    id=names,
    network=names,
    name=names,
    public_key=st.binary(min_size=32, max_size=32),
    addresses=st.lists(addresses, min_size=1, max_size=3).map(tuple),
    routes=st.lists(ranges, max_size=3).map(tuple),
    tags=st.lists(names, max_size=3).map(tuple),
    serial=counts,
    not_after=counts,
    previous_public_key=st.sampled_from([b"", b"p" * 32]),
)
whereabouts = st.builds(
    NodeEndpoints,
    node_id=names,
    network=names,
    endpoints=st.lists(st.builds(Endpoint, addresses, st.integers(1, 65535)), max_size=4).map(tuple),
    serial=counts,
)
targets = st.lists(names, min_size=1, max_size=3).map(tuple)
controllers = st.builds(Controller, id=names, mesh=targets, join=targets, serial=counts, roots=targets)
revocations = st.builds(
    Revocation,
    node_id=names,
    network=names,
    name=names,
    revoked_serial=counts,
    banned=st.booleans(),
    not_after=counts,
    serial=counts,
)
roots = st.builds(Root, certificate=st.binary(max_size=40), retired=st.booleans(), serial=counts)
records = st.one_of(networks, nodes, whereabouts, controllers, revocations, roots)

NODE = Node("abc", "mesh", "a", b"k" * 32, (ip_address("10.77.0.1"),), serial=7)
SIGNED = sign(NODE, ROOT)
KEY = b"k" * 32


@given(records)
def test_what_the_root_signed_is_read_back_whole(record: Record) -> None:
    signed = sign(record, ROOT)
    assert verify(map_key(record), signed, ROOT.public_key()) == record
    assert read(map_key(record), signed) == record


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    signed = bytearray(SIGNED)
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        verify("node/abc", bytes(signed), ROOT.public_key())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(noise: bytes) -> None:
    for key in ("network", "node/abc", "endpoints/abc", "controller/a", "revoked/a", "root/a", "nonsense"):
        with pytest.raises(RecordError):
            verify(key, noise, ROOT.public_key())
        signed = mesh_pb2.Signed(body=noise, signature=b"").SerializeToString()
        with pytest.raises(RecordError):
            read("nonsense", signed)


def test_a_stranger_signs_in_vain() -> None:
    with pytest.raises(RecordError, match="not signed by this mesh's root"):
        verify("node/abc", sign(NODE, STRANGER), ROOT.public_key())


def test_a_record_can_not_stand_under_another_key() -> None:
    with pytest.raises(RecordError, match="is the record of node/abc, not of node/xyz"):
        verify("node/xyz", sign(NODE, ROOT), ROOT.public_key())


def test_a_record_can_not_pass_for_another_kind() -> None:
    with pytest.raises(RecordError, match="not signed"):
        verify("endpoints/abc", sign(NODE, ROOT), ROOT.public_key())


@pytest.mark.parametrize(
    ("kind", "message", "cause"),
    [
        (
            "node/a",
            mesh_pb2.NodeRecord(node_id="a", public_key=b"short", addresses=["10.0.0.1"]),
            "public key of 5",
        ),
        ("node/a", mesh_pb2.NodeRecord(node_id="a", public_key=KEY), "without an id or an address"),
        (
            "node/a",
            mesh_pb2.NodeRecord(node_id="a", public_key=KEY, addresses=["x"]),
            "'x' is not an IP",
        ),
        ("network", mesh_pb2.NetworkRecord(number=0), "network number 0"),
        ("network", mesh_pb2.NetworkRecord(number=1, mode=mesh_pb2.Mode.MODE_UNSPECIFIED), "mode 0"),
        ("network", mesh_pb2.NetworkRecord(number=1, ranges=["10.0.0.1/8"]), "not a range"),
        (
            "endpoints/a",
            mesh_pb2.EndpointsRecord(node_id="a", endpoints=[mesh_pb2.Endpoint(address="10.0.0.1", port=0)]),
            "endpoint port 0",
        ),
    ],
)
def test_a_record_that_can_not_be_says_what_is_wrong(
    kind: str,
    message: mesh_pb2.NodeRecord | mesh_pb2.NetworkRecord | mesh_pb2.EndpointsRecord,
    cause: str,
) -> None:
    signed = mesh_pb2.Signed(body=message.SerializeToString(), signature=b"")
    with pytest.raises(RecordError, match=cause):
        read(kind, signed.SerializeToString())
