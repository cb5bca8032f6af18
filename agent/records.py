"""What of the map is verified and used, and what never comes back.

An item that can't be used is refused by name, and the last good one under its key stays in use. A revocation
stays in force until its time is over, whatever the map says later.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from overmesh.errors import RecordError
from overmesh.model import (
    NETWORK_KEY,
    Network,
    Node,
    Record,
    Revocation,
    endpoints_key,
    network_of,
    node_key,
    owner,
    revoked_key,
)
from overmesh.proto.roots import Roots, is_root_key
from overmesh.proto.signed import verify
from overmesh.succession import refusal, step_back

# Seconds for which a step back of the store is a problem: it may never be explained, nor be one.
ALARM = 86400.0


@dataclass(frozen=True, slots=True)
class Floor:
    """The serial of a record that went away, below which nothing comes back, and until when that matters."""

    serial: int
    until: int


@dataclass(frozen=True, slots=True)
class Verified:
    """A record that the root has signed, and how it came."""

    record: Record
    signed: bytes


class Records:
    """The records in use.

    good: peer map key -> record. refused: peer map key -> why what the map has there is not.

    Args:
        roots: the mesh roots that are trusted.
        own: the encoded Signed of the network and of this host's node. They are never absent: no map can take
            from this host who it is.
        items: the raw map, which its owner goes on changing.
        floors: from an earlier process.

    Raises:
        RecordError: `own` does not verify.

    """

    def __init__(
        self,
        roots: Roots,
        own: Mapping[str, bytes],
        items: Mapping[str, bytes],
        floors: Mapping[str, Floor],
    ) -> None:
        self.roots = roots
        self.good = {key: Verified(verify(key, signed, roots), signed) for key, signed in own.items()}
        self.refused: dict[str, str] = {}
        self.floors = dict(floors)
        self._own = own.keys()
        self._items = items
        self._revocations: dict[str, Verified] = {}
        # Whether something in use may be signed by a root that is no longer trusted.
        self._unsure = False
        # Nodes that went without being revoked, and when that was first looked at.
        self._vanished: dict[str, float] = {}

    @property
    def network(self) -> Network:
        """The network that this host is in, as the newest record that verifies says."""
        record = self.good[NETWORK_KEY].record
        assert isinstance(record, Network)
        return record

    def revocation(self, node_id: str) -> Revocation | None:
        """Return the revocation of a node that was taken out; None when there is none."""
        held = self._revocations.get(revoked_key(node_id))
        return held.record if held and isinstance(held.record, Revocation) else None

    # What comes.

    def admit(self, key: str, signed: bytes) -> None:
        """Use an item from now on, or refuse it."""
        try:
            record = self._checked(key, signed)
        except RecordError as error:
            self.refused[key] = error.cause
            return
        self.good[key] = Verified(record, signed)
        self.refused.pop(key, None)
        self._vanished.pop(key, None)
        if isinstance(record, Revocation):
            self._revocations[key] = self.good[key]
            self._void(record)

    def _checked(self, key: str, signed: bytes) -> Record:
        held = self.good.get(key)
        if held is not None and held.signed == signed:
            return held.record
        record = verify(key, signed, self.roots)
        if network_of(record) not in (self.network.name, None):
            raise RecordError(f"is of network {network_of(record)}, not of {self.network.name}")
        floor = self.floors.get(key)
        why = step_back(
            record,
            held=held.record if held else None,
            revocation=self.revocation(owner(key)),
            floor=floor.serial if floor else 0,
        )
        if why:
            raise RecordError(why)
        return record

    def _void(self, revocation: Revocation) -> None:
        self._vanished.pop(node_key(revocation.node_id), None)
        for key in (node_key(revocation.node_id), endpoints_key(revocation.node_id)):
            self.floors.pop(key, None)
            held = self.good.get(key)
            if held and key not in self._own and revocation.voids(held.record):
                del self.good[key]
                if key in self._items:
                    self.refused[key] = refusal(revocation, held.record)

    def follow_roots(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Trust the roots that these records lead to from here, for all that comes from now on.

        What is in use stays so until `purge`: it was right when it came, and what takes its place may be
        under way.
        """
        before = self.roots
        self.roots = before.following((key, signed) for key, signed in records if is_root_key(key))
        if self.roots != before:
            self._unsure = True
            self._admit_again(self.refused)

    def purge(self) -> None:
        """Stop using what none of the roots has signed that are trusted now."""
        if not self._unsure:
            return
        self._unsure = False
        void = [key for key, held in self.good.items() if not self.roots.signer(key, held.signed)]
        for key in void:
            if key not in self._own:
                del self.good[key]
                self._revocations.pop(key, None)
        self._admit_again(void)

    def _admit_again(self, keys: Iterable[str]) -> None:
        # Revocations first: they decide what counts of the rest.
        held = sorted(self._items.keys() & keys, key=lambda key: not key.startswith(revoked_key("")))
        for key in held:
            self.admit(key, self._items[key])

    # What goes.

    def remove(self, key: str) -> None:
        """Stop using what went from the map; of a node its endpoints first."""
        self.refused.pop(key, None)
        held = self.good.get(key)
        # What a revocation says stays true though the map leaves it out.
        if held is None or key in self._own or isinstance(held.record, Revocation):
            return
        # An endpoints record is worth nothing without its node, so it need not be remembered longer.
        node = self.good.get(node_key(owner(key)))
        until = node.record.not_after if node and isinstance(node.record, Node) else 0
        self.floors[key] = Floor(held.record.serial, until)
        if isinstance(held.record, Node):
            self._vanished[key] = 0.0
        del self.good[key]

    def forgive(self) -> None:
        """Ask no more where the nodes are that went."""
        self._vanished.clear()

    def prune(self, now: float) -> None:
        """Forget what was removed or revoked and would have expired by now (unix seconds) anyway."""
        self.floors = {key: floor for key, floor in self.floors.items() if floor.until >= now}
        for key, revocation in list(self._left_out()):
            if not revocation.in_force(now):
                del self.good[key], self._revocations[key]
        seen = {key: at or now for key, at in self._vanished.items()}
        self._vanished = {key: at for key, at in seen.items() if at > now - ALARM}

    # What the map should have and has not.

    def withheld(self, now: float) -> Mapping[str, bytes]:
        """Return the revocations in force (peer map key -> encoded Signed) that the map leaves out."""
        return {
            key: self.good[key].signed for key, revocation in self._left_out() if revocation.in_force(now)
        }

    def _left_out(self) -> Iterator[tuple[str, Revocation]]:
        for key, held in self._revocations.items():
            if isinstance(held.record, Revocation) and self._items.get(key) != held.signed:
                yield key, held.record

    def missing(self, now: float) -> dict[str, str]:
        """Return what the map should have: peer map key -> what about it."""
        left_out = "the map leaves out this revocation before its time; it is kept to all the same"
        vanished = "went from the map, and nothing says that it was taken out"
        return dict.fromkeys(self.withheld(now), left_out) | dict.fromkeys(self._vanished, vanished)
