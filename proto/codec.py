"""Protobuf <-> model. Record messages are read and written here and nowhere else.

Everything that arrives is checked once, here: after `decode_*` returns, types and ranges hold.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

from google.protobuf.message import DecodeError, Message

from overmesh.config import MAX_LANES
from overmesh.errors import RecordError
from overmesh.model import (
    NETWORK_KEY,
    Address,
    Controller,
    Endpoint,
    FastpathPeer,
    FastpathState,
    Kind,
    Mode,
    Network,
    Node,
    NodeEndpoints,
    Problem,
    Range,
    Record,
    Revocation,
    Root,
    Suite,
)
from overmesh.proto import fastpath_pb2, mesh_pb2

PUBLIC_KEY_LENGTH = 32
# Of what an agent says of itself.
MAX_TEXT = 500
MAX_PROBLEMS = 100
MAX_NETWORK_NUMBER = (1 << 24) - 1
# Of ReportRequest.withheld.
MAX_WITHHELD = 64


def endpoint_message(endpoint: Endpoint) -> mesh_pb2.Endpoint:
    """Return an endpoint as it travels."""
    return mesh_pb2.Endpoint(address=str(endpoint.address), port=endpoint.port)


def endpoint_value(message: mesh_pb2.Endpoint, *, unknown_port: bool = False) -> Endpoint:
    """Return the endpoint of a message; with `unknown_port`, port 0 stands for one that is yet to be known.

    Raises:
        RecordError: no IP address, or no port.

    """
    if not (0 if unknown_port else 1) <= message.port < 1 << 16:
        raise RecordError(f"endpoint port {message.port} is not between 1 and 65535")
    return Endpoint(_address(message.address), message.port)


def problem_messages(problems: Iterable[Problem]) -> list[mesh_pb2.Problem]:
    """Return problems as they travel."""
    return [mesh_pb2.Problem(subject=problem.subject, reason=problem.reason) for problem in problems]


def text_value(text: str) -> str:
    """Return what a stranger says as people may read it: no control characters, no novel."""
    return "".join(char if char.isprintable() else "�" for char in text[:MAX_TEXT])


def problem_values(messages: Iterable[mesh_pb2.Problem]) -> tuple[Problem, ...]:
    """Return the problems of messages."""
    first = itertools.islice(messages, MAX_PROBLEMS)
    return tuple(Problem(text_value(message.subject), text_value(message.reason)) for message in first)


def encode_record(record: Record) -> bytes:
    """Return the bytes that get signed."""
    match record:
        case Network():
            message: Message = mesh_pb2.NetworkRecord(
                name=record.name,
                number=record.number,
                ranges=[str(cidr) for cidr in record.ranges],
                mode=mesh_pb2.Mode.Name(record.mode),
                mtu=record.mtu,
                serial=record.serial,
            )
        case Node():
            message = mesh_pb2.NodeRecord(
                node_id=record.id,
                network=record.network,
                name=record.name,
                public_key=record.public_key,
                addresses=[str(address) for address in record.addresses],
                routes=[str(cidr) for cidr in record.routes],
                tags=record.tags,
                serial=record.serial,
                not_after=record.not_after,
                suites=[mesh_pb2.Suite.Name(suite) for suite in record.suites],
                kind=mesh_pb2.Kind.Name(record.kind),
                previous_public_key=record.previous_public_key,
            )
        case NodeEndpoints():
            message = mesh_pb2.EndpointsRecord(
                node_id=record.node_id,
                network=record.network,
                endpoints=[endpoint_message(endpoint) for endpoint in record.endpoints],
                serial=record.serial,
                lanes=record.lanes,
            )
        case Controller():
            message = mesh_pb2.ControllerRecord(
                id=record.id,
                mesh=record.mesh,
                join=record.join,
                serial=record.serial,
                roots=record.roots,
            )
        case Revocation():
            message = mesh_pb2.RevocationRecord(
                node_id=record.node_id,
                network=record.network,
                name=record.name,
                revoked_serial=record.revoked_serial,
                banned=record.banned,
                not_after=record.not_after,
                serial=record.serial,
                reason=record.reason,
            )
        case Root():
            message = mesh_pb2.RootRecord(
                certificate=record.certificate, retired=record.retired, serial=record.serial
            )
    return message.SerializeToString(deterministic=True)


def decode_record(kind: str, body: bytes) -> Record:
    """Return the record in a signed body.

    Args:
        kind: the first part of its peer map key.
        body: what was signed.

    Raises:
        RecordError: names what in it can't be.

    """
    try:
        return _DECODERS[kind](body)
    except KeyError:
        raise RecordError(f"{kind!r} is no kind of record that this version knows") from None
    except DecodeError:
        raise RecordError(f"not a {kind} record") from None


def _network(body: bytes) -> Network:
    message = mesh_pb2.NetworkRecord.FromString(body)
    if not 0 < message.number <= MAX_NETWORK_NUMBER:
        raise RecordError(f"network number {message.number} is not between 1 and {MAX_NETWORK_NUMBER}")
    return Network(
        name=message.name,
        number=message.number,
        ranges=_ranges(message.ranges),
        mode=_mode(message.mode),
        mtu=message.mtu,
        serial=message.serial,
    )


def _node(body: bytes) -> Node:
    message = mesh_pb2.NodeRecord.FromString(body)
    for key in (message.public_key, *filter(None, [message.previous_public_key])):
        if len(key) != PUBLIC_KEY_LENGTH:
            raise RecordError(f"public key of {len(key)} bytes instead of {PUBLIC_KEY_LENGTH}")
    if not message.node_id or not message.addresses:
        raise RecordError("a node record without an id or an address")
    return Node(
        id=message.node_id,
        network=message.network,
        name=message.name,
        public_key=message.public_key,
        addresses=tuple(_address(text) for text in message.addresses),
        routes=_ranges(message.routes),
        tags=tuple(message.tags),
        serial=message.serial,
        not_after=message.not_after,
        suites=suite_values(message.suites),
        kind=_kind(message.kind),
        previous_public_key=message.previous_public_key,
    )


def _endpoints(body: bytes) -> NodeEndpoints:
    message = mesh_pb2.EndpointsRecord.FromString(body)
    return NodeEndpoints(
        node_id=message.node_id,
        network=message.network,
        endpoints=tuple(endpoint_value(endpoint) for endpoint in message.endpoints),
        serial=message.serial,
        lanes=lanes_value(message.lanes),
    )


def _controller(body: bytes) -> Controller:
    message = mesh_pb2.ControllerRecord.FromString(body)
    if not message.id or not message.mesh:
        raise RecordError("a controller record without an id or an address")
    return Controller(
        id=message.id,
        mesh=tuple(message.mesh),
        join=tuple(message.join),
        serial=message.serial,
        roots=tuple(message.roots),
    )


def _revocation(body: bytes) -> Revocation:
    message = mesh_pb2.RevocationRecord.FromString(body)
    if not message.node_id:
        raise RecordError("a revocation that names no node")
    return Revocation(
        node_id=message.node_id,
        network=message.network,
        name=message.name,
        revoked_serial=message.revoked_serial,
        banned=message.banned,
        not_after=message.not_after,
        serial=message.serial,
        reason=message.reason,
    )


def _root(body: bytes) -> Root:
    message = mesh_pb2.RootRecord.FromString(body)
    return Root(message.certificate, message.retired, message.serial)


_DECODERS: Mapping[str, Callable[[bytes], Record]] = {
    NETWORK_KEY: _network,
    "node": _node,
    "endpoints": _endpoints,
    "controller": _controller,
    "revoked": _revocation,
    "root": _root,
}


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise RecordError(f"{text!r} is not an IP address") from None


def _ranges(texts: Iterable[str]) -> tuple[Range, ...]:
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise RecordError(f"not a range: {error}") from None


def _mode(number: int) -> Mode:
    try:
        return Mode(number)
    except ValueError:
        raise RecordError(f"mode {number} is not one that this version knows") from None


def mode_values(numbers: Iterable[int]) -> tuple[Mode, ...]:
    """Return the modes of a message: those that this version knows."""
    named = set(numbers)
    return tuple(mode for mode in Mode if mode in named)


def _kind(number: int) -> Kind:
    try:
        return Kind(number or Kind.AGENT)
    except ValueError:
        raise RecordError(f"a node of kind {number} is not one that this version knows") from None


def suite_values(numbers: Iterable[int]) -> tuple[Suite, ...]:
    """Return the suites of a message: those that this version knows, ChaCha when it names none.

    A newer node may offer more; the two then take the best that both know.
    """
    offered = set(numbers)
    known = tuple(suite for suite in Suite if suite in offered)
    return known or (Suite.CHACHA,)


def lanes_value(number: int) -> int:
    """Return the number of lanes in a message.

    Raises:
        RecordError: more than there can be.

    """
    if number > MAX_LANES:
        raise RecordError(f"{number} lanes are more than {MAX_LANES}")
    return max(number, 1)


def apply_request(state: FastpathState) -> fastpath_pb2.ApplyRequest:
    """Return the desired state of the fastpath as it is applied."""
    return fastpath_pb2.ApplyRequest(
        revision=state.revision,
        tun=state.tun,
        mtu=state.mtu,
        network_number=state.network_number,
        port=state.port,
        peers=[_fastpath_peer(peer) for peer in state.peers],
        private_key=state.private_key,
        lanes=state.lanes,
        other_private_key=state.other_private_key,
    )


def change_request(before: FastpathState, base: bytes, state: FastpathState) -> fastpath_pb2.ChangeRequest:
    """Return what makes one state of the fastpath another.

    Args:
        before: what it has; a peer that is the same object there stays.
        base: digest of the table that it made of that.
        state: the desired one.

    """
    gone = {peer.id: peer for peer in before.peers}
    changed = tuple(peer for peer in state.peers if gone.pop(peer.id, None) is not peer)
    desired = apply_request(replace(state, peers=changed))
    return fastpath_pb2.ChangeRequest(desired=desired, removed=gone, base=base)


def _fastpath_peer(peer: FastpathPeer) -> fastpath_pb2.Peer:
    return fastpath_pb2.Peer(
        id=peer.id,
        name=peer.name,
        prefixes=[str(prefix) for prefix in peer.prefixes],
        endpoints=[str(endpoint) for endpoint in peer.endpoints],
        mode=fastpath_pb2.Mode.Name(peer.mode),
        public_key=peer.public_key,
        suite=fastpath_pb2.Suite.Name(peer.suite),
        keepalive_s=peer.keepalive_s,
        lanes=peer.lanes,
        stock=peer.stock,
        previous_public_key=peer.previous_public_key,
    )


# The peer map stream by bytes: an item is encoded once when it changes, and the same bytes go
# into every snapshot and delta. Protobuf allows it: a message's encoding is the concatenation of
# its fields' (https://protobuf.dev/programming-guides/encoding/).

_ITEMS_TAG = b"\x7a"  # field 15, length-delimited: Snapshot.items and Delta.items
_SNAPSHOT_TAG = b"\x0a"  # field 1 of WatchReply
_DELTA_TAG = b"\x12"  # field 2 of WatchReply


def encode_item(key: str, signed: bytes) -> bytes:
    """Return a peer map item, ready to be appended to an encoded Snapshot or Delta."""
    name = key.encode()
    item = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(signed)) + signed
    return _ITEMS_TAG + _varint(len(item)) + item


def encode_snapshot(revision: int, digest: bytes, chunk: int, chunks: int, items: Iterable[bytes]) -> bytes:
    """Return the WatchReply with one chunk of a snapshot; items are from `encode_item`."""
    head = mesh_pb2.Snapshot(revision=revision, digest=digest, chunk=chunk, chunks=chunks)
    return _wrapped(_SNAPSHOT_TAG, head.SerializeToString(), items)


def encode_delta(
    from_revision: int,
    to_revision: int,
    digest: bytes,
    removed: Iterable[str],
    items: Iterable[bytes],
    traceparent: str = "",
) -> bytes:
    """Return the WatchReply with what changed between two revisions; items are from `encode_item`."""
    head = mesh_pb2.Delta(
        from_revision=from_revision,
        to_revision=to_revision,
        digest=digest,
        removed=list(removed),
        traceparent=traceparent,
    )
    return _wrapped(_DELTA_TAG, head.SerializeToString(), items)


def encode_heartbeat(revision: int, digest: bytes) -> bytes:
    """Return the WatchReply that only tells where the map stands."""
    reply = mesh_pb2.WatchReply(heartbeat=mesh_pb2.Heartbeat(revision=revision, digest=digest))
    return reply.SerializeToString()


def item_values(messages: Iterable[mesh_pb2.Item]) -> Mapping[str, bytes]:
    """Return received items as key -> encoded Signed, verbatim: nothing is verified yet."""
    return {message.key: message.signed for message in messages}


def _wrapped(tag: bytes, head: bytes, items: Iterable[bytes]) -> bytes:
    body = head + b"".join(items)
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
