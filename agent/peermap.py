"""The peer map as this host holds it: what arrived, what of it is verified, what is refused and why.

    WatchReply --receive--> raw items + digest --admit--> verified records --view(now)--> PeerMap + problems

The raw items are kept as they came, so that the digest proves that this host and its controller hold
the same map; the verified records are what is used (records.py), as far as they go together (usable.py).
What can't be used becomes a Problem. No I/O, no clock, no concurrency.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum

from overmesh.agent.records import ALARM, Floor, Records
from overmesh.agent.usable import Members, members
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
    Record,
    endpoints_key,
    node_key,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import item_values
from overmesh.proto.roots import Roots, is_root_key


class Outcome(Enum):
    """What a message from the controller meant for the replica."""

    NOTHING = "part of a snapshot, or older than what is held"
    CHANGED = "the map is at the revision of the message: apply it, then ack"
    CURRENT = "the controller has the very map that is held"
    BEHIND = "the controller has a newer map; its delta should be on the way"
    RESYNC = "the held map can't be brought up to date from here: open a new stream"


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
        self._mine = node_key(node_id)
        self._items = dict(held.items)
        # RemovedError takes from this host who it is, no map does: see sync.py.
        self._used = Records(roots, {NETWORK_KEY: network, self._mine: node}, self._items, held.floors)
        # When the store was first seen to have gone back.
        self._back_since = 0.0
        self._newest = held.newest
        self._assembly: _Assembly | None = None
        self._astray = False
        self._known: Members | None = None
        self._peers: dict[str, Peer] = {}
        self.revision = held.revision
        self.digest = Digest.of(held.items)
        self._used.follow_roots(self._items.items())
        for key, signed in (*held.good.items(), *held.items.items()):
            self._used.admit(key, signed)

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
        for key in sorted(removed):  # endpoints/… before node/…
            del self._items[key]
            self._used.remove(key)
        self._items.update(changed)
        if any(map(is_root_key, changed)):
            self.follow_roots(self._items.items())
        for key, signed in changed.items():
            self._used.admit(key, signed)
        self._used.purge()
        self.revision, self.digest = revision, digest
        self._newest = max(self._newest, revision)

    # Which of it is used.

    @property
    def roots(self) -> Roots:
        """The mesh roots that are trusted now."""
        return self._used.roots

    def follow_roots(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Trust the roots that these records lead to; what else is in use goes with the next change."""
        self._used.follow_roots(records)

    @property
    def records(self) -> Iterator[Record]:
        """What is verified and in use."""
        return (held.record for held in self._used.good.values())

    @property
    def signing(self) -> str:
        """The fingerprint of the root that signs now, as far as this host knows."""
        return self.roots.signer(NETWORK_KEY, self._used.good[NETWORK_KEY].signed)

    @property
    def estranged(self) -> bool:
        """Whether the map says of the network or of this host what no root has signed that is trusted here.

        Somebody has written to the store; or the root was rotated, and this host has missed it.
        """
        return not self._used.refused.keys().isdisjoint((NETWORK_KEY, self._mine))

    @property
    def own(self) -> tuple[bytes, bytes]:
        """The encoded Signed of the network and of this host's node, as they are in use."""
        return self._used.good[NETWORK_KEY].signed, self._used.good[self._mine].signed

    @property
    def place(self) -> NodeEndpoints | None:
        """Where the map says that this host is; None when it says nothing that can be used."""
        key = endpoints_key(self._mine.partition("/")[2])
        held = self._used.good.get(key)
        said = held and held.signed == self._items.get(key)
        return held.record if held and said and isinstance(held.record, NodeEndpoints) else None

    def renew_own(self, network: bytes, node: bytes) -> None:
        """Take in both from a renewal; they are checked like everything that arrives."""
        self._used.admit(NETWORK_KEY, network)
        self._used.admit(self._mine, node)

    def clear(self) -> None:
        """Forget the map: this host is no member any more. Who it is and what was removed stays known."""
        self._move(0, Digest(), {}, set(self._items))
        self._used.forgive()

    def prune(self, now: float) -> None:
        """Forget what was removed or revoked and would have expired by now (unix seconds) anyway."""
        self._used.prune(now)
        self._back_since = (self._back_since or now) if 0 < self.revision < self._newest else 0.0
        if self._back_since and self._back_since <= now - ALARM:
            self._newest = self.revision

    def withheld(self, now: float) -> Mapping[str, bytes]:
        """Return the revocations in force (peer map key -> encoded Signed) that the map leaves out."""
        return self._used.withheld(now) if self.revision else {}

    def held(self) -> Held:
        """Return what has to be on disk for the next process to start from here."""
        good = {
            key: held.signed for key, held in self._used.good.items() if self._items.get(key) != held.signed
        }
        return Held(self.revision, self._newest, dict(self._items), good, dict(self._used.floors))

    @property
    def controllers(self) -> Sequence[Controller]:
        """The controllers that run now, as far as their records verify."""
        records = (held.record for held in self._used.good.values())
        return [record for record in records if isinstance(record, Controller)]

    @property
    def members(self) -> int:
        """How many nodes the map names."""
        return sum(key.startswith("node/") for key in self._items)

    @property
    def network(self) -> Network:
        """The network that this host is in, as the newest record that verifies says."""
        return self._used.network

    def view(self, now: float) -> View:
        """Return the verified map and every problem with it at `now` (unix seconds)."""
        records = [held.record for held in self._used.good.values()]
        places = {record.node_id: record for record in records if isinstance(record, NodeEndpoints)}
        members = self._members(tuple(record for record in records if isinstance(record, Node)), now)
        problems = self._steps_back(now) | self._used.refused | self._own_problems(members.me, now)
        for key, reason in members.unusable.items():
            known = problems.get(key)
            problems[key] = f"{known}; the record held before: {reason}" if known else reason
        return View(
            PeerMap(self.revision, self.network, members.me, self._peers_of(members, places)),
            tuple(Problem(subject, problems[subject]) for subject in sorted(problems)),
        )

    def _members(self, nodes: tuple[Node, ...], now: float) -> Members:
        known, network = self._known, self.network
        # Equal records are the same objects, so that comparing thousands of them is quick.
        if not (
            known and known.nodes == nodes and known.network == network and known.since <= now < known.until
        ):
            known = self._known = members(nodes, network, self._mine.partition("/")[2], now)
        return known

    def _peers_of(self, members: Members, places: Mapping[str, NodeEndpoints]) -> tuple[Peer, ...]:
        before, self._peers = self._peers, {}
        for node in members.usable:
            place = places.get(node.id)
            endpoints, lanes = (place.endpoints, place.lanes) if place else ((), 1)
            peer = before.get(node.id)
            # A peer that stays as it is stays the same object: what follows from it need not be made again.
            if not (peer and peer.node is node and peer.endpoints is endpoints and peer.lanes == lanes):
                peer = Peer(node, endpoints, lanes)
            self._peers[node.id] = peer
        return tuple(self._peers.values())

    def _own_problems(self, me: Node, now: float) -> dict[str, str]:
        problems = {}
        if self.revision:
            missing = {NETWORK_KEY, self._mine} - self._items.keys()
            problems = dict.fromkeys(missing, "is missing from the map; the last one stays in use")
        revocation = self._used.revocation(me.id)
        if revocation and revocation.voids(me):
            problems[self._mine] = "this host was taken out of the network; others refuse it"
        elif me.not_after < now:
            problems[self._mine] = "this host's own membership expired; others refuse it"
        return problems

    def _steps_back(self, now: float) -> dict[str, str]:
        """Return what the controllers' store once said and says no more."""
        if not self.revision:
            return {}
        problems = self._used.missing(now)
        if self.revision < self._newest:
            problems["store"] = (
                f"the controllers' store went back from revision {self._newest} to {self.revision}: "
                "restored from a backup, or tampered with"
            )
        return problems
