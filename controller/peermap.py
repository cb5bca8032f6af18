"""The peer map of one network: what every member is to hold, at which revision. Pure, in memory.

    store events --apply--> items, digest, log of changes --since / snapshot--> encoded messages

Every item is encoded once when it changes, every message once for all who are at the same place.
Every member sees all members of its network, itself included, so all digests are equal.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from overmesh.model import Digest
from overmesh.proto.codec import encode_delta, encode_heartbeat, encode_item, encode_snapshot

CHUNK = 256 << 10
HISTORY = 10_000


@dataclass(frozen=True, slots=True)
class Position:
    """A revision of the map, and the digest of what it holds then."""

    revision: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Step:
    """A change of the map: where it led, which keys it touched, and the trace that it is part of."""

    head: Position
    keys: frozenset[str]
    traceparent: str = ""


@dataclass(slots=True)
class Tally:
    """How often what happened to a map and on its streams. collapsed: changes that went along with others."""

    encoded: int = 0
    deltas: int = 0
    snapshots: int = 0
    heartbeats: int = 0
    collapsed: int = 0
    acks: int = 0
    misses: int = 0


class NetworkMap:
    """All items of one network and the way they came to be.

    Args:
        revision: from which on changes are known.
        items: peer map key -> encoded Signed, as of that revision.
        history: so many changes back, agents get a delta; beyond, a snapshot.

    """

    def __init__(self, revision: int, items: Mapping[str, bytes], *, history: int = HISTORY) -> None:
        self._history = history
        self._items = dict(items)
        self.tally = Tally(encoded=len(items))
        self._encoded = {key: encode_item(key, signed) for key, signed in items.items()}
        self._digest = Digest.of(items)
        self._log = [_Step(Position(revision, self._digest.to_bytes()), frozenset())]
        self._deltas: dict[int, bytes] = {}
        self._snapshot: tuple[bytes, ...] = ()

    @property
    def head(self) -> Position:
        """Where the map is now."""
        return self._log[-1].head

    @property
    def items(self) -> Mapping[str, bytes]:
        """Peer map key -> encoded Signed, as it is now."""
        return self._items

    def apply(self, revision: int, changes: Mapping[str, bytes | None], traceparent: str = "") -> None:
        """Take in what changed at a revision: key -> encoded Signed, or None when it went away."""
        for key, signed in changes.items():
            self._set(key, signed)
        self._log.append(_Step(Position(revision, self._digest.to_bytes()), frozenset(changes), traceparent))
        if len(self._log) > 2 * self._history:
            del self._log[: -self._history]
        self._deltas.clear()
        self._snapshot = ()

    def _set(self, key: str, signed: bytes | None) -> None:
        if key in self._items:
            self._digest = self._digest.remove(key, self._items.pop(key))
            del self._encoded[key]
        if signed is not None:
            self._digest = self._digest.add(key, signed)
            self._items[key] = signed
            self._encoded[key] = encode_item(key, signed)
            self.tally.encoded += 1

    def position(self, revision: int) -> Position | None:
        """Return where the map was at a revision; None when that is not (or no longer) known."""
        step = self._step(revision)
        return Position(revision, self._log[step].head.digest) if step >= 0 else None

    def _step(self, revision: int) -> int:
        """Return the index of the last change up to a revision, or -1."""
        if revision > self.head.revision:
            return -1
        return bisect_right(self._log, revision, key=lambda step: step.head.revision) - 1

    def since(self, held: Position) -> bytes | None:
        """Return the message that leads from what an agent holds to the head.

        None when only a snapshot can: its revision is not known, or its digest is not the right one.
        """
        if held == self.position(held.revision):
            return self._delta(held.revision)
        if held.digest == self.head.digest and held.revision < self.head.revision:
            # The log does not reach back, but nothing is different: so it is after a restart.
            return encode_delta(held.revision, self.head.revision, self.head.digest, (), ())
        return None

    def changes_since(self, revision: int) -> int:
        """Return how many changes lead from a revision that is known to the head."""
        return len(self._log) - 1 - self._step(revision)

    def _delta(self, revision: int) -> bytes:
        if revision not in self._deltas:
            steps = self._log[self._step(revision) + 1 :]
            touched = sorted(frozenset().union(*(step.keys for step in steps)))
            self._deltas[revision] = encode_delta(
                revision,
                self.head.revision,
                self.head.digest,
                [key for key in touched if key not in self._items],
                [self._encoded[key] for key in touched if key in self._items],
                next((step.traceparent for step in reversed(steps) if step.traceparent), ""),
            )
        return self._deltas[revision]

    def snapshot(self) -> Sequence[bytes]:
        """Return the messages that give the whole map."""
        if not self._snapshot:
            chunks = list(_chunks(self._encoded.values()))
            self._snapshot = tuple(
                encode_snapshot(self.head.revision, self.head.digest, number, len(chunks), items)
                for number, items in enumerate(chunks)
            )
        return self._snapshot

    def heartbeat(self) -> bytes:
        """Return the message that only tells where the head is."""
        return encode_heartbeat(self.head.revision, self.head.digest)


def _chunks(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield items in groups of about CHUNK bytes; one empty group when there are none."""
    group: list[bytes] = []
    size = 0
    for item in encoded:
        if group and size + len(item) > CHUNK:
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item)
    yield group
