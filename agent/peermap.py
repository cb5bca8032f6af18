"""The peer map as this host holds it: what arrived, what of it is verified, what is refused and why.

    WatchReply --receive--> raw items + digest --admit--> verified records --view(now)--> PeerMap + problems

The raw items are kept as they came, so that the digest proves that this host and its controller hold
the same map; the verified records are what is used. An item that can't be used becomes a Problem and
the last good record under its key stays in use. No I/O, no clock, no concurrency.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_network

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from overmesh.errors import RecordError
from overmesh.model import (
    NETWORK_KEY,
    Controller,
    Digest,
    Network,
    Node,
    NodeEndpoints,
    Peer,
    PeerMap,
    Problem,
    Range,
    Record,
    network_of,
    node_key,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import item_values
from overmesh.proto.signed import verify


class Outcome(Enum):
    """What a message from the controller meant for the replica."""

    NOTHING = "part of a snapshot, or older than what is held"
    CHANGED = "the map is at the revision of the message: apply it, then ack"
    CURRENT = "the controller has the very map that is held"
    BEHIND = "the controller has a newer map; its delta should be on the way"
    RESYNC = "the held map can't be brought up to date from here: open a new stream"


@dataclass(frozen=True, slots=True)
class Floor:
    """The lowest serial that a key may come back with, and until when (unix seconds) that matters."""

    serial: int
    until: int


@dataclass(frozen=True, slots=True)
class Held:
    """What of a replica outlives the process.

    items: the raw map at `revision`. good: verified records in use whose raw item has since been
    replaced by one that is refused. newest: the highest revision ever held.
    """

    revision: int = 0
    newest: int = 0
    items: Mapping[str, bytes] = field(default_factory=dict)
    good: Mapping[str, bytes] = field(default_factory=dict)
    floors: Mapping[str, Floor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """What may be used at a moment, and what may not."""

    map: PeerMap
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Verified:
    record: Record
    signed: bytes


@dataclass(slots=True)
class _Assembly:
    """A snapshot of which some chunks are still missing."""

    revision: int
    digest: bytes
    chunks: dict[int, Mapping[str, bytes]]


class Replica:
    """One agent's copy of the map of its network.

    Args:
        root: the mesh root's public key, pinned when the host joined.
        network: the encoded Signed of the network, from joining.
        node_id: this host's.
        node: the encoded Signed of this host's own node, from joining.
        held: what an earlier process kept; verified again like everything that arrives.

    Raises:
        RecordError: `network` or `node` do not verify.

    """

    def __init__(
        self,
        root: EllipticCurvePublicKey,
        network: bytes,
        node_id: str,
        node: bytes,
        held: Held | None = None,
    ) -> None:
        held = held or Held()
        self._root = root
        self._mine = node_key(node_id)
        # Never absent: no map can take from this host who it is (RemovedError does, see sync.py).
        own = {NETWORK_KEY: network, self._mine: node}
        self._good = {key: _Verified(verify(key, signed, root), signed) for key, signed in own.items()}
        self._refused: dict[str, str] = {}
        self._floors = dict(held.floors)
        self._items = dict(held.items)
        self._newest = held.newest
        self._assembly: _Assembly | None = None
        self._astray = False
        self.revision = held.revision
        self.digest = Digest.of(held.items)
        for key, signed in (*held.good.items(), *held.items.items()):
            self._admit(key, signed)

    def begin(self) -> tuple[int, bytes]:
        """Return revision and digest for the Hello of a new stream, and forget what was left of the last one.

        After a RESYNC they ask for a whole snapshot.
        """
        self._assembly = None
        if self._astray:
            return 0, b""
        return self.revision, self.digest.to_bytes()

    def receive(self, reply: mesh_pb2.WatchReply) -> Outcome:
        """Take in one message of the stream; duplicates and messages out of order do no harm."""
        match reply.WhichOneof("body"):
            case "snapshot":
                outcome = self._snapshot(reply.snapshot)
            case "delta":
                outcome = self._delta(reply.delta)
            case "heartbeat":
                outcome = self._heartbeat(reply.heartbeat)
            case None:
                outcome = Outcome.NOTHING
        if outcome is not Outcome.NOTHING:
            self._astray = outcome is Outcome.RESYNC
        return outcome

    def _snapshot(self, message: mesh_pb2.Snapshot) -> Outcome:
        here = self._assembly
        if here is None or (here.revision, here.digest) != (message.revision, message.digest):
            here = self._assembly = _Assembly(message.revision, message.digest, {})
        here.chunks[message.chunk] = item_values(message.items)
        if len(here.chunks) < message.chunks:
            return Outcome.NOTHING
        self._assembly = None
        items = {key: signed for chunk in here.chunks.values() for key, signed in chunk.items()}
        digest = Digest.of(items)
        if digest.to_bytes() != message.digest:
            return Outcome.RESYNC
        changed = {key: signed for key, signed in items.items() if self._items.get(key) != signed}
        self._move(message.revision, digest, changed, self._items.keys() - items.keys())
        return Outcome.CHANGED

    def _delta(self, message: mesh_pb2.Delta) -> Outcome:
        if message.to_revision < self.revision:
            return Outcome.NOTHING
        if message.to_revision == self.revision:
            return Outcome.CHANGED if message.digest == self.digest.to_bytes() else Outcome.RESYNC
        if message.from_revision != self.revision:
            return Outcome.RESYNC
        changed = item_values(message.items)
        removed = {key for key in message.removed if key in self._items and key not in changed}
        digest = self.digest
        for key in (*removed, *changed):
            if key in self._items:
                digest = digest.remove(key, self._items[key])
            if key in changed:
                digest = digest.add(key, changed[key])
        if digest.to_bytes() != message.digest:
            return Outcome.RESYNC
        self._move(message.to_revision, digest, changed, removed)
        return Outcome.CHANGED

    def _heartbeat(self, message: mesh_pb2.Heartbeat) -> Outcome:
        same = message.digest == self.digest.to_bytes()
        if same and message.revision <= self.revision:
            return Outcome.CURRENT
        if message.revision < self.revision:
            return Outcome.NOTHING
        if message.revision == self.revision:
            return Outcome.RESYNC
        if not same:
            return Outcome.BEHIND
        self._move(message.revision, self.digest, {}, set())
        return Outcome.CHANGED

    def _move(self, revision: int, digest: Digest, changed: Mapping[str, bytes], removed: Set[str]) -> None:
        # A controller that was restored from a backup, or lags, may take the map back for a while:
        # what is missing there was not removed.
        final = revision >= self._newest
        for key in sorted(removed):  # endpoints/… before node/…: see _remove
            del self._items[key]
            self._remove(key, final=final)
        self._items.update(changed)
        for key, signed in changed.items():
            self._admit(key, signed)
        self.revision, self.digest = revision, digest
        self._newest = max(self._newest, revision)

    # Which of it is used.

    def _admit(self, key: str, signed: bytes) -> None:
        try:
            self._good[key] = _Verified(self._checked(key, signed), signed)
            self._refused.pop(key, None)
        except RecordError as error:
            self._refused[key] = error.cause

    def _checked(self, key: str, signed: bytes) -> Record:
        held = self._good.get(key)
        if held is not None and held.signed == signed:
            return held.record
        record = verify(key, signed, self._root)
        if network_of(record) not in (self.network.name, None):
            raise RecordError(f"is of network {network_of(record)}, not of {self.network.name}")
        if held is not None and record.serial < held.record.serial:
            raise RecordError(f"serial {record.serial} is older than {held.record.serial}, which is in use")
        floor = self._floors.get(key)
        if floor is not None and record.serial < floor.serial:
            raise RecordError(f"serial {record.serial} was removed; only {floor.serial} or later comes back")
        return record

    def _remove(self, key: str, *, final: bool) -> None:
        self._refused.pop(key, None)
        held = self._good.get(key)
        if held is None or key in (NETWORK_KEY, self._mine):
            return
        # An endpoints record is worth nothing without its node, so it need not be remembered longer.
        owner = self._good.get(node_key(key.partition("/")[2]))
        until = owner.record.not_after if owner and isinstance(owner.record, Node) else 0
        self._floors[key] = Floor(held.record.serial + final, until)
        del self._good[key]

    def clear(self) -> None:
        """Forget the map: this host is no member any more. Who it is and what was removed stays known."""
        self._move(0, Digest(), {}, set(self._items))

    def prune(self, now: float) -> None:
        """Forget removed records that would have expired by now (unix seconds) anyway."""
        self._floors = {key: floor for key, floor in self._floors.items() if floor.until >= now}

    def held(self) -> Held:
        """Return what has to be on disk for the next process to start from here."""
        good = {key: held.signed for key, held in self._good.items() if self._items.get(key) != held.signed}
        return Held(self.revision, self._newest, dict(self._items), good, dict(self._floors))

    @property
    def controllers(self) -> Sequence[Controller]:
        """The controllers that run now, as far as their records verify."""
        records = (held.record for held in self._good.values())
        return [record for record in records if isinstance(record, Controller)]

    @property
    def members(self) -> int:
        """How many nodes the map names."""
        return sum(key.startswith("node/") for key in self._items)

    @property
    def network(self) -> Network:
        """The network that this host is in, as the newest record that verifies says."""
        record = self._good[NETWORK_KEY].record
        assert isinstance(record, Network)
        return record

    def view(self, now: float) -> View:
        """Return the verified map and every problem with it at `now` (unix seconds).

        An address or route belongs to one node: this host first, then whoever's record has the higher
        serial, because that one was issued later.
        """
        records = [held.record for held in self._good.values()]
        nodes = {record.id: record for record in records if isinstance(record, Node)}
        places = {record.node_id: record for record in records if isinstance(record, NodeEndpoints)}
        me = nodes.pop(self._mine.partition("/")[2])
        problems = dict(self._refused) | self._own_problems(me, now)
        claims = dict.fromkeys(_claims(me), me)
        peers: dict[str, Peer] = {}
        for node in sorted(nodes.values(), key=lambda node: (-node.serial, node.id)):
            reason = _unusable(node, self.network, claims, now)
            if reason:
                key = node_key(node.id)
                problems[key] = (
                    f"{problems[key]}; the record held before: {reason}" if key in problems else reason
                )
                continue
            claims |= dict.fromkeys(_claims(node), node)
            place = places.get(node.id, NodeEndpoints(node.id, node.network, ()))
            peers[node.id] = Peer(node, place.endpoints, place.lanes)
        return View(
            PeerMap(self.revision, self.network, me, tuple(peers[key] for key in sorted(peers))),
            tuple(Problem(subject, problems[subject]) for subject in sorted(problems)),
        )

    def _own_problems(self, me: Node, now: float) -> dict[str, str]:
        problems = {}
        if self.revision:
            missing = {NETWORK_KEY, self._mine} - self._items.keys()
            problems = dict.fromkeys(missing, "is missing from the map; the last one stays in use")
        if me.not_after < now:
            problems[self._mine] = "this host's own membership expired; others refuse it"
        return problems


def _unusable(node: Node, network: Network, claims: Mapping[Range, Node], now: float) -> str:
    """Return why a verified node must not be used now, or an empty string."""
    if node.not_after < now:
        return "expired"
    for address in node.addresses:
        if not any(address in cidr for cidr in network.ranges):
            return f"address {address} is outside the ranges of network {network.name}"
    for claim in _claims(node):
        if claim in claims:
            return f"claims {claim}, which belongs to {claims[claim].name}"
    return ""


def _claims(node: Node) -> Iterator[Range]:
    """Yield every prefix that a node wants to receive."""
    yield from (ip_network(address) for address in node.addresses)
    yield from node.routes
