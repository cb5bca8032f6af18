"""One agent's stream as rules: what it is known to hold, and what it is sent next. No I/O, no clock.

    hello ──► since(held) or snapshot ──► one bundle in flight ──► ack ──► held ──► …

- Nothing counts as held before it is acked with the right digest.
- While a bundle is in flight or the last one was a moment ago, changes pile up in the map, not here: what is
  sent next leads from what is held to the head.
- A wrong digest costs a snapshot; again and again, ever rarer ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from overmesh.controller.peermap import NetworkMap, Position
from overmesh.errors import UnreachableError

SPACING = 0.1
# A change of a large map goes to many, and each acks it: so much more for each of its items, or a controller
# with 10,000 agents would do nothing else than send one change after the other (measured, docs/scale.md).
SPACING_PER_ITEM = 0.0001
HEARTBEAT = 10.0
ACK_TIMEOUT = 30.0
_MAX_SPACING = 10.0


@dataclass(slots=True)
class _InFlight:
    position: Position
    since: float


class Session:
    """What the controller owes one agent. Times are seconds of one monotonic clock.

    Args:
        peers: the map that the agent is to hold.
        held: what it says it holds; revision 0: nothing.
        now: the time.

    """

    def __init__(self, peers: NetworkMap, held: Position, now: float) -> None:
        self._map = peers
        self._held: Position | None = held if held.revision else None
        self._in_flight: _InFlight | None = None
        self._earliest = now
        self._heartbeat_at = now
        self._misses_in_a_row = 0
        self.misses = 0
        # The revision that the agent holds for certain; 0: none.
        self.acked = held.revision if self.in_step or peers.position(held.revision) == held else 0

    @property
    def in_step(self) -> bool:
        """Whether the agent holds the head.

        It may know a later revision for it: that of another controller, which has begun to follow the
        store after the last change of this map.
        """
        head, held = self._map.head, self._held
        return held is not None and held.digest == head.digest and held.revision >= head.revision

    @property
    def in_flight_since(self) -> float | None:
        """When the bundle was sent that an ack is owed for; None when none is."""
        return self._in_flight.since if self._in_flight else None

    def poll(self, now: float) -> Sequence[bytes]:
        """Return the messages to send now; none: ask again after an ack, a change, or at `deadline`.

        Raises:
            UnreachableError: the agent owes an ack for too long.

        """
        if self._in_flight:
            if now >= self._in_flight.since + ACK_TIMEOUT:
                raise UnreachableError(f"no ack within {ACK_TIMEOUT:.0f} s", "the agent connects again")
            return ()
        if not self.in_step:
            return self._bundle(now) if now >= self._earliest else ()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT
            self._map.tally.heartbeats += 1
            return (self._map.heartbeat(),)
        return ()

    def _bundle(self, now: float) -> Sequence[bytes]:
        delta = self._delta(self._held) if self._held else None
        self._in_flight = _InFlight(self._map.head, now)
        self._heartbeat_at = now + HEARTBEAT
        spacing = max(SPACING, SPACING_PER_ITEM * len(self._map.items))
        self._earliest = now + min(spacing * 2**self._misses_in_a_row, _MAX_SPACING)
        if delta is None:
            self._map.tally.snapshots += 1
            return self._map.snapshot()
        self._map.tally.deltas += 1
        return (delta,)

    def _delta(self, held: Position) -> bytes | None:
        delta = self._map.since(held)
        self._map.tally.collapsed += self._map.changes_since(held.revision) - 1 if delta else 0
        return delta

    def written(self, now: float) -> None:
        """Say that what `poll` returned has been sent: the agent's time to ack starts."""
        if self._in_flight:
            self._in_flight.since = now

    def deadline(self) -> float:
        """Return when to poll again if nothing else happens."""
        if self._in_flight:
            return self._in_flight.since + ACK_TIMEOUT
        return self._heartbeat_at if self.in_step else self._earliest

    def on_ack(self, held: Position) -> None:
        """Take in what the agent says it holds."""
        self._map.tally.acks += 1
        if self._in_flight and held.revision == self._in_flight.position.revision:
            if held == self._in_flight.position:
                self._held, self.acked = held, held.revision
                self._misses_in_a_row = 0
            else:
                self._miss()
            self._in_flight = None
        elif self._contradicts(held):
            self._miss()
            self._in_flight = None
        # Else it repeats what is known, perhaps with news about itself.

    def _contradicts(self, held: Position) -> bool:
        known = self._map.position(held.revision)
        return known is not None and known.digest != held.digest

    def _miss(self) -> None:
        self._held, self.acked = None, 0
        self._misses_in_a_row = min(self._misses_in_a_row + 1, 16)
        self.misses += 1
        self._map.tally.misses += 1
