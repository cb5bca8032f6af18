"""The peer map as this host holds it: what arrived, what of it is verified, what is refused and why.

    WatchReply --receive--> raw items + digest --admit--> verified records --view(now)--> PeerMap + problems

The raw items are kept as they came, so that the digest proves that this host and its controller hold
the same map; the verified records are what is used. An item that can't be used becomes a Problem and
the last good record under its key stays in use. A revocation stays in force until its time is over, whatever
the map says later. No I/O, no clock, no concurrency.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_network

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
    Revocation,
    endpoints_key,
    network_of,
    node_key,
    owner,
    revoked_key,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import item_values
from overmesh.proto.roots import Roots, is_root_key
from overmesh.proto.signed import verify
from overmesh.succession import refusal, step_back

# Seconds for which a node that went without being revoked is a problem: it may never be explained.
VANISHED_SHOWN = 86400.0


class Outcome(Enum):
    """What a message from the controller meant for the replica."""

    NOTHING = "part of a snapshot, or older than what is held"
    CHANGED = "the map is at the revision of the message: apply it, then ack"
    CURRENT = "the controller has the very map that is held"
    BEHIND = "the controller has a newer map; its delta should be on the way"
    RESYNC = "the held map can't be brought up to date from here: open a new stream"


@dataclass(frozen=True, slots=True)
class Floor:
    """The serial of a record that went away, below which nothing comes back, and until when that matters."""

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
        roots: the mesh roots that are trusted: the one that was pinned when the host joined, or what the map
            has made of it since.
        network: the encoded Signed of the network, from joining.
        node_id: this host's.
        node: the encoded Signed of this host's own node, from joining.
        held: what an earlier process kept; verified again like everything that arrives.

    Raises:
        RecordError: `network` or `node` do not verify.

    """

    def __init__(
        self,
        roots: Roots,
        network: bytes,
        node_id: str,
        node: bytes,
        held: Held | None = None,
    ) -> None:
        held = held or Held()
        self.roots = roots
        self._mine = node_key(node_id)
        # Never absent: no map can take from this host who it is (RemovedError does, see sync.py).
        own = {NETWORK_KEY: network, self._mine: node}
        self._good = {key: _Verified(verify(key, signed, roots), signed) for key, signed in own.items()}
        self._refused: dict[str, str] = {}
        self._floors = dict(held.floors)
        # Nodes that went without being revoked, and when that was first looked at.
        self._vanished: dict[str, float] = {}
        self._items = dict(held.items)
        self._newest = held.newest
        self._assembly: _Assembly | None = None
        self._astray = False
        self.revision = held.revision
        self.digest = Digest.of(held.items)
        self.follow_roots(self._items.items())
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
        for key in sorted(removed):  # endpoints/… before node/…: see _remove
            del self._items[key]
            self._remove(key)
        self._items.update(changed)
        if any(map(is_root_key, changed)):
            self.follow_roots(self._items.items())
        for key, signed in changed.items():
            self._admit(key, signed)
        self.revision, self.digest = revision, digest
        self._newest = max(self._newest, revision)

    # Which of it is used.

    def _admit(self, key: str, signed: bytes) -> None:
        try:
            record = self._checked(key, signed)
        except RecordError as error:
            self._refused[key] = error.cause
            return
        self._good[key] = _Verified(record, signed)
        self._refused.pop(key, None)
        self._vanished.pop(key, None)
        if isinstance(record, Revocation):
            self._void(record)

    def _checked(self, key: str, signed: bytes) -> Record:
        held = self._good.get(key)
        if held is not None and held.signed == signed:
            return held.record
        record = verify(key, signed, self.roots)
        if network_of(record) not in (self.network.name, None):
            raise RecordError(f"is of network {network_of(record)}, not of {self.network.name}")
        floor = self._floors.get(key)
        why = step_back(
            record,
            held=held.record if held else None,
            revocation=self._revocation(owner(key)),
            floor=floor.serial if floor else 0,
        )
        if why:
            raise RecordError(why)
        return record

    def _revocation(self, node_id: str) -> Revocation | None:
        held = self._good.get(revoked_key(node_id))
        return held.record if held and isinstance(held.record, Revocation) else None

    def _void(self, revocation: Revocation) -> None:
        self._vanished.pop(node_key(revocation.node_id), None)
        for key in (node_key(revocation.node_id), endpoints_key(revocation.node_id)):
            self._floors.pop(key, None)
            held = self._good.get(key)
            if held and key != self._mine and revocation.voids(held.record):
                del self._good[key]
                if key in self._items:
                    self._refused[key] = refusal(revocation, held.record)

    def _remove(self, key: str) -> None:
        self._refused.pop(key, None)
        held = self._good.get(key)
        # What a revocation says stays true though the map leaves it out.
        if held is None or key in (NETWORK_KEY, self._mine) or isinstance(held.record, Revocation):
            return
        # An endpoints record is worth nothing without its node, so it need not be remembered longer.
        node = self._good.get(node_key(owner(key)))
        until = node.record.not_after if node and isinstance(node.record, Node) else 0
        self._floors[key] = Floor(held.record.serial, until)
        if isinstance(held.record, Node):
            self._vanished[key] = 0.0
        del self._good[key]

    # The mesh root.

    def follow_roots(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Trust the roots that these records lead to from here, and nothing that only others have signed."""
        before = self.roots
        self.roots = before.following((key, signed) for key, signed in records if is_root_key(key))
        if self.roots == before:
            return
        for key, held in list(self._good.items()):
            if not self.roots.signer(key, held.signed):
                self._remove(key)
        for key in [key for key in self._refused if key in self._items]:
            self._admit(key, self._items[key])

    @property
    def records(self) -> Iterator[Record]:
        """What is verified and in use."""
        return (held.record for held in self._good.values())

    @property
    def signing(self) -> str:
        """The fingerprint of the root that signs now, as far as this host knows."""
        return self.roots.signer(NETWORK_KEY, self._good[NETWORK_KEY].signed)

    @property
    def own(self) -> tuple[bytes, bytes]:
        """The encoded Signed of the network and of this host's node, as they are in use."""
        return self._good[NETWORK_KEY].signed, self._good[self._mine].signed

    def renew_own(self, network: bytes, node: bytes) -> None:
        """Take in both from a renewal; they are checked like everything that arrives."""
        self._admit(NETWORK_KEY, network)
        self._admit(self._mine, node)

    def clear(self) -> None:
        """Forget the map: this host is no member any more. Who it is and what was removed stays known."""
        self._move(0, Digest(), {}, set(self._items))
        self._vanished.clear()

    def prune(self, now: float) -> None:
        """Forget what was removed or revoked and would have expired by now (unix seconds) anyway."""
        self._floors = {key: floor for key, floor in self._floors.items() if floor.until >= now}
        for key, revocation in self._left_out():
            if not revocation.in_force(now):
                del self._good[key]
        seen = {key: at or now for key, at in self._vanished.items()}
        self._vanished = {key: at for key, at in seen.items() if at > now - VANISHED_SHOWN}

    def withheld(self, now: float) -> Mapping[str, bytes]:
        """Return the revocations in force (peer map key -> encoded Signed) that the map leaves out."""
        if not self.revision:
            return {}
        return {
            key: self._good[key].signed for key, revocation in self._left_out() if revocation.in_force(now)
        }

    def _left_out(self) -> list[tuple[str, Revocation]]:
        return [
            (key, held.record)
            for key, held in self._good.items()
            if isinstance(held.record, Revocation) and self._items.get(key) != held.signed
        ]

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
        problems = self._steps_back(now) | self._refused | self._own_problems(me, now)
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
        revocation = self._revocation(me.id)
        if revocation and revocation.voids(me):
            problems[self._mine] = "this host was taken out of the network; others refuse it"
        elif me.not_after < now:
            problems[self._mine] = "this host's own membership expired; others refuse it"
        return problems

    def _steps_back(self, now: float) -> dict[str, str]:
        """Return what the controllers' store once said and says no more."""
        left_out = "the map leaves out this revocation before its time; it is kept to all the same"
        problems = dict.fromkeys(self.withheld(now), left_out)
        problems |= dict.fromkeys(self._vanished, "went from the map, and nothing says that it was taken out")
        if 0 < self.revision < self._newest:
            problems["store"] = (
                f"the controllers' store went back from revision {self._newest} to {self.revision}: "
                "restored from a backup, or tampered with"
            )
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
