"""A mesh root, its members and their maps, for tests: the controller's side in a few lines."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from overmesh.agent.peermap import Held, Replica
from overmesh.model import (
    NETWORK_KEY,
    Digest,
    Endpoint,
    Network,
    Node,
    NodeEndpoints,
    Record,
    Revocation,
    endpoints_key,
    node_key,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.roots import ROOT_NAME, Roots
from overmesh.proto.signed import map_key, sign


def root_certificate(key: EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a certificate of a mesh root, as little of one as the agent looks at."""
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2046, 1, 1, tzinfo=UTC)
    return x509.CertificateBuilder(ROOT_NAME, ROOT_NAME, key.public_key(), 1, begin, end).sign(key, SHA256())


ROOT = generate_private_key(SECP256R1())
ROOTS = Roots((root_certificate(ROOT),))
FORGER = generate_private_key(SECP256R1())
NETWORK = Network("mesh", 7, (ip_network("10.77.0.0/16"), ip_network("fd77::/64")), serial=1)
PRIVATE = X25519PrivateKey.from_private_bytes(bytes([1]) * 32)
SOON, LATER = 4_000_000_000, 5_000_000_000  # unix seconds, both after today

Items = dict[str, bytes]


def node(number: int, serial: int = 10, **changes: object) -> Node:
    """Return the node with this number: id n<number>, addresses ending in it."""
    fields = {
        "id": f"n{number}",
        "network": NETWORK.name,
        "name": f"host{number}",
        "public_key": bytes([number]) * 32,
        "addresses": (ip_address(f"10.77.0.{number}"), ip_address(f"fd77::{number}")),
        "serial": serial,
        "not_after": LATER,
    }
    return Node(**(fields | changes))  # type: ignore[arg-type]


def endpoints(number: int, serial: int = 10, port: int = 6081) -> NodeEndpoints:
    """Return where the node with this number is."""
    return NodeEndpoints(
        f"n{number}", NETWORK.name, (Endpoint(ip_address(f"192.0.2.{number}"), port),), serial
    )


def revocation(number: int, revoked_serial: int = 10, **changes: object) -> Revocation:
    """Return what takes the node with this number out."""
    fields = {"not_after": LATER, "serial": revoked_serial + 1}
    return Revocation(f"n{number}", NETWORK.name, f"host{number}", revoked_serial, **(fields | changes))  # type: ignore[arg-type]


def signed(*records: Record) -> Items:
    """Return map items, each signed by the root."""
    return {map_key(record): _signed(record) for record in records}


@cache
def _signed(record: Record) -> bytes:
    # Once per record: ECDSA gives another signature each time.
    return sign(record, ROOT)


ME = node(1, public_key=PRIVATE.public_key().public_bytes_raw())
MINE = signed(NETWORK, ME)


def replica(held: Held | None = None) -> Replica:
    """Return the replica of node 1."""
    return Replica(ROOTS, MINE[NETWORK_KEY], ME.id, MINE[node_key(ME.id)], held)


def members(*numbers: int, serial: int = 10) -> Items:
    """Return the whole map of a network of these nodes and node 1."""
    return MINE | signed(
        endpoints(1), *(record for n in numbers for record in (node(n, serial), endpoints(n, serial)))
    )


def digest(items: Mapping[str, bytes]) -> bytes:
    return Digest.of(items).to_bytes()


def snapshot(revision: int, items: Mapping[str, bytes], chunks: int = 1) -> list[mesh_pb2.WatchReply]:
    """Return the messages of a snapshot, its items dealt out over so many chunks."""
    return [
        mesh_pb2.WatchReply(
            snapshot=mesh_pb2.Snapshot(
                revision=revision,
                digest=digest(items),
                chunk=chunk,
                chunks=chunks,
                items=[mesh_pb2.Item(key=key, signed=items[key]) for key in sorted(items)[chunk::chunks]],
            )
        )
        for chunk in range(chunks)
    ]


def delta(
    from_revision: int, before: Mapping[str, bytes], to_revision: int, after: Mapping[str, bytes]
) -> mesh_pb2.WatchReply:
    """Return the message that leads from one map to another."""
    return mesh_pb2.WatchReply(
        delta=mesh_pb2.Delta(
            from_revision=from_revision,
            to_revision=to_revision,
            digest=digest(after),
            removed=sorted(before.keys() - after.keys()),
            items=[
                mesh_pb2.Item(key=key, signed=value)
                for key, value in sorted(after.items())
                if before.get(key) != value
            ],
        )
    )


def heartbeat(revision: int, items: Mapping[str, bytes]) -> mesh_pb2.WatchReply:
    return mesh_pb2.WatchReply(heartbeat=mesh_pb2.Heartbeat(revision=revision, digest=digest(items)))


def names(of: Replica, now: float = SOON) -> list[str]:
    """Return the ids of the peers that may be used."""
    return [peer.node.id for peer in of.view(now).map.peers]


def reasons(of: Replica, now: float = SOON) -> dict[str, str]:
    """Return what is refused: subject -> reason."""
    return {problem.subject: problem.reason for problem in of.view(now).problems}


def without(items: Items, number: int) -> Items:
    """Return the map without a node."""
    return {
        key: value
        for key, value in items.items()
        if key not in (node_key(f"n{number}"), endpoints_key(f"n{number}"))
    }
