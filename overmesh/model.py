"""What the parts talk about: frozen values, no I/O.

A network has members; a member is a Node (who it is, signed when it changes) with
NodeEndpoints (where it is, signed apart because that changes often). What one agent gets to see
is its PeerMap: signed items under keys, at a revision, with a digest.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network

NETWORK_KEY = "network"


class Mode(IntEnum):
    """How packets between nodes of a network travel. The numbers are those of mesh.proto."""

    PLAIN = 1
    SEALED = 2


class Suite(IntEnum):
    """How packets between two nodes are sealed. The numbers are those of mesh.proto and fastpath.proto."""

    CHACHA = 1
    AES = 2


class Kind(IntEnum):
    """What runs on a member. The numbers are those of mesh.proto."""

    AGENT = 1
    WIREGUARD = 2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a node can be reached on the underlay (UDP)."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Network:
    """One overlay: its ranges and how it carries packets."""

    name: str
    number: int
    ranges: tuple[Range, ...]
    mode: Mode = Mode.PLAIN
    mtu: int = 0
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A member: identity and what belongs to it. Signed by the mesh root."""

    id: str
    network: str
    name: str
    public_key: bytes
    addresses: tuple[Address, ...]
    routes: tuple[Range, ...] = ()
    tags: tuple[str, ...] = ()
    serial: int = 0
    not_after: int = 0
    suites: tuple[Suite, ...] = (Suite.CHACHA,)
    kind: Kind = Kind.AGENT
    # While it changes its key: the one before, still good.
    previous_public_key: bytes = b""

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        """The X25519 keys that are good for it."""
        return tuple(filter(None, (self.public_key, self.previous_public_key)))


@dataclass(frozen=True, slots=True)
class NodeEndpoints:
    """Where a member is, best first. Signed by the mesh root, apart from the Node.

    lanes: how many it has; lane i listens i ports above each endpoint's.
    """

    node_id: str
    network: str
    endpoints: tuple[Endpoint, ...]
    serial: int = 0
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller that serves this mesh now. mesh, join: host:port of its ports, best first.

    roots: fingerprints of the mesh roots whose keys it holds.
    """

    id: str
    mesh: tuple[str, ...]
    join: tuple[str, ...]
    serial: int = 0
    roots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Revocation:
    """Says that a node was taken out: its records up to `revoked_serial` are void.

    banned: its key never comes back; else a new token lets it in again. not_after: unix seconds, when its
    records have expired anyway; 0: never. reason: what the operator said.
    """

    node_id: str
    network: str
    name: str
    revoked_serial: int
    banned: bool = False
    not_after: int = 0
    serial: int = 0
    reason: str = ""

    def voids(self, record: "Record") -> bool:
        """Tell whether a record of this very node counts no more."""
        return not isinstance(record, Revocation) and (self.banned or record.serial <= self.revoked_serial)

    def in_force(self, now: float) -> bool:
        """Tell whether it still matters at `now` (unix seconds)."""
        return not self.not_after or self.not_after >= now


@dataclass(frozen=True, slots=True)
class Root:
    """A certificate (DER) that is trusted as mesh root, or, retired, no longer is."""

    certificate: bytes
    retired: bool = False
    serial: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex."""
        return hashlib.sha256(self.certificate).hexdigest()


Record = Network | Node | NodeEndpoints | Controller | Revocation | Root


def network_of(record: Record) -> str | None:
    """Return the name of the network that a record is of; None: the whole mesh."""
    match record:
        case Network():
            return record.name
        case Controller() | Root():
            return None
        case _:
            return record.network


def node_key(node_id: str) -> str:
    """Return the peer map key of a node's record."""
    return f"node/{node_id}"


def endpoints_key(node_id: str) -> str:
    """Return the peer map key of a node's endpoints."""
    return f"endpoints/{node_id}"


def owner(key: str) -> str:
    """Return the node id in the peer map key of a node's record or endpoints; empty for any other key."""
    kind, _, node_id = key.partition("/")
    return node_id if kind in ("node", "endpoints") else ""


def controller_key(controller_id: str) -> str:
    """Return the peer map key of a controller."""
    return f"controller/{controller_id}"


def revoked_key(node_id: str) -> str:
    """Return the peer map key of a node's revocation."""
    return f"revoked/{node_id}"


def root_key(fingerprint: str) -> str:
    """Return the peer map key of a mesh root's certificate, by its SHA-256 in hex."""
    return f"root/{fingerprint}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something an agent could not use or do, by name."""

    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Digest:
    """A fingerprint of a set of items that is updated in O(1) per change.

    The sum modulo 2^256 of SHA-256(key, 0, value) over the items: the order of arrival does not
    matter, and adding then removing an item gives back the old digest. It proves convergence
    between parties that mean well; it is no defence against forgery, the signatures are.
    """

    value: int = 0

    @staticmethod
    def _term(key: str, value: bytes) -> int:
        return int.from_bytes(hashlib.sha256(key.encode() + b"\0" + value).digest())

    def add(self, key: str, value: bytes) -> Self:
        """Return the digest of the set with the item in it."""
        return type(self)((self.value + self._term(key, value)) % (1 << 256))

    def remove(self, key: str, value: bytes) -> Self:
        """Return the digest of the set without the item."""
        return type(self)((self.value - self._term(key, value)) % (1 << 256))

    @classmethod
    def of(cls, items: Mapping[str, bytes]) -> Self:
        """Return the digest of a whole set."""
        return cls(sum(cls._term(key, value) for key, value in items.items()) % (1 << 256))

    def to_bytes(self) -> bytes:
        """Return the 32 bytes that travel."""
        return self.value.to_bytes(32)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what travelled."""
        return cls(int.from_bytes(data))


@dataclass(frozen=True, slots=True)
class MapItems:
    """A peer map as it travels and is stored: key -> encoded Signed, nothing verified yet."""

    revision: int = 0
    items: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member as this host sees it: who and where."""

    node: Node
    endpoints: tuple[Endpoint, ...]
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class PeerMap:
    """One agent's verified view of its network."""

    revision: int
    network: Network
    me: Node
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class FastpathPeer:
    """A peer as the fastpath needs it. Keys and suite: in a sealed network only."""

    id: str
    name: str
    prefixes: tuple[Range, ...]
    endpoints: tuple[Endpoint, ...]
    mode: Mode
    public_key: bytes = b""
    suite: Suite = Suite.CHACHA
    keepalive_s: int = 0
    lanes: int = 1
    stock: bool = False
    previous_public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class FastpathState:
    """The whole desired state of the fastpath process. Keys: in a sealed network only."""

    revision: int
    tun: str
    mtu: int
    network_number: int
    port: int
    peers: tuple[FastpathPeer, ...]
    private_key: bytes = field(default=b"", repr=False)
    lanes: int = 1
    other_private_key: bytes = field(default=b"", repr=False)
