"""One network as this controller believes it, whatever the store says of it later.

    what the store says --verify--> --no step back?--> records in use, map for the agents
                            |              |
                            forged         older, or revoked: refused, by name

What was verified once stays in use until something newer, or a removal, takes its place. A revocation is
not even removed by that, before its time. Under a key with nothing good, what does not verify is passed on
as it came: the agents refuse it themselves, by name.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from overmesh.controller.notices import Notices
from overmesh.controller.peermap import NetworkMap
from overmesh.errors import RecordError, StoreCorruptError
from overmesh.model import (
    NETWORK_KEY,
    Network,
    Node,
    NodeEndpoints,
    Record,
    Revocation,
    endpoints_key,
    network_of,
    node_key,
    owner,
    revoked_key,
)
from overmesh.succession import refusal, step_back

_log = logging.getLogger("overmesh.controller")

Changes = Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Judge:
    """What a view needs to tell good from bad.

    verified: peer map key and encoded Signed -> record, or RecordError. clock: unix seconds. notices: where
    to say what can't be refused.
    """

    verified: Callable[[str, bytes], Record]
    clock: Callable[[], float]
    notices: Notices


class NetworkView:
    """One network: the map as agents get it, the records in it that are used, and what is not.

    records: peer map key -> verified record. refused: peer map key -> why what the store has there is not.

    Args:
        name: of the network; empty for what is the whole mesh's.
        revision: from which on it is followed.
        said: peer map key -> encoded Signed, as the store has them.
        judge: of what is said.

    """

    def __init__(self, name: str, revision: int, said: Changes, judge: Judge) -> None:
        self.name = name
        self.records: dict[str, Record] = {}
        self.refused: dict[str, str] = {}
        self._judge = judge
        # The serial of what went away without having been revoked.
        self._floors: dict[str, int] = {}
        self._wronged: set[str] = set()
        self.map = NetworkMap(revision, {})
        believed = self._believed(said)
        self.map = NetworkMap(revision, {key: signed for key, signed in believed.items() if signed})

    @property
    def network(self) -> Network:
        """The network's own record.

        Raises:
            StoreCorruptError: what the store has in its place is no such record.

        """
        record = self.records.get(NETWORK_KEY)
        if isinstance(record, Network):
            return record
        why = self.refused.get(NETWORK_KEY, "it is missing")
        raise StoreCorruptError(
            f"the record of network {self.name} can't be used: {why}", "restore the store from a backup"
        )

    @property
    def usable(self) -> bool:
        """Whether the network's own record can be used."""
        return NETWORK_KEY in self.records

    def node(self, node_id: str) -> Node | None:
        """Return a member's record; None when it is missing or refused."""
        record = self.records.get(node_key(node_id))
        return record if isinstance(record, Node) else None

    def endpoints(self, node_id: str) -> NodeEndpoints | None:
        """Return where a member is; None when that is missing or refused."""
        record = self.records.get(endpoints_key(node_id))
        return record if isinstance(record, NodeEndpoints) else None

    def revocation(self, node_id: str) -> Revocation | None:
        """Return the revocation of a node that was taken out; None when there is none."""
        record = self.records.get(revoked_key(node_id))
        return record if isinstance(record, Revocation) else None

    def revoked_serial(self, node_id: str) -> int:
        """Return the serial that every record of a node has to be above."""
        revocation = self.revocation(node_id)
        return revocation.revoked_serial if revocation else 0

    def highest_serial(self, node_id: str) -> int:
        """Return the highest serial that anything of a node was seen to have."""
        keys = (node_key(node_id), endpoints_key(node_id))
        seen = [self._floors.get(key, 0) for key in keys]
        seen += [self.records[key].serial for key in keys if key in self.records]
        return max(*seen, self.revoked_serial(node_id))

    def log_fields(self, node_id: str) -> dict[str, str]:
        """Return the log fields that say which node: its name too, as far as it is or was known."""
        known = self.node(node_id) or self.revocation(node_id)
        name = {"node": known.name} if known and known.name else {}
        return {"network": self.name, **name, "id": node_id}

    @property
    def void(self) -> Iterator[str]:
        """The ids of nodes whose record the store has, though it was revoked."""
        for key in self.refused:
            node_id = owner(key)
            if key == node_key(node_id) and key not in self.records and self.revocation(node_id):
                yield node_id

    @property
    def wronged(self) -> Mapping[str, bytes]:
        """What the store should have and has not: records in use that were put back, revocations lost."""
        return {key: self.map.items[key] for key in self._wronged if key in self.map.items}

    # Taking in what the store says.

    def take(self, revision: int, said: Changes, traceparent: str = "") -> Changes:
        """Take in what the store says at a revision; return what that changed in the map."""
        changes = self._believed(said)
        if changes:
            self.map.apply(revision, changes, traceparent)
        return changes

    def _believed(self, said: Changes) -> Changes:
        changes: dict[str, bytes | None] = {}
        # Revocations first: they decide what counts of the rest.
        for key in sorted(said, key=lambda key: not key.startswith(revoked_key(""))):
            signed = said[key]
            changes |= self._gone(key) if signed is None else self._come(key, signed)
        return changes

    def distrust(self) -> None:
        """Stop using what none of the roots signed that are trusted now."""
        for key in list(self.records):
            try:
                self._verified(key, self.map.items[key])
            except RecordError as error:
                del self.records[key]
                self._refuse(key, error.cause, wronged=False)

    def check(self, key: str, signed: bytes) -> Record:
        """Return the record in an encoded Signed, if it could be used now.

        Raises:
            RecordError: forged, of another network, or a step back.

        """
        record = self._verified(key, signed)
        if why := self._step_back(key, record):
            raise RecordError(why)
        return record

    def _verified(self, key: str, signed: bytes) -> Record:
        record = self._judge.verified(key, signed)
        if network_of(record) not in (self.name, None):
            raise RecordError(f"is of network {network_of(record)}, not of {self.name}")
        return record

    def _step_back(self, key: str, record: Record) -> str:
        return step_back(
            record,
            held=self.records.get(key),
            revocation=self.revocation(owner(key)),
            floor=self._floors.get(key, 0),
        )

    def _come(self, key: str, signed: bytes) -> Changes:
        try:
            record = self._verified(key, signed)
        except RecordError as error:
            # A revocation is put back whatever has taken its place.
            self._refuse(key, error.cause, wronged=key.startswith(revoked_key("")))
            return {} if key in self.records else {key: signed}
        if why := self._step_back(key, record):
            self._refuse(key, why, wronged=network_of(record) is not None)
            return {} if key in self.records else self._without(key)
        self.refused.pop(key, None)
        self._wronged.discard(key)
        self._floors.pop(key, None)
        self.records[key] = record
        return {key: signed} | (self._voided(record) if isinstance(record, Revocation) else {})

    def _refuse(self, key: str, why: str, *, wronged: bool) -> None:
        self.refused[key] = why
        if wronged and key in self.records:
            self._wronged.add(key)
        _log.warning(
            "a record in the store can't be used",
            extra={"network": self.name, "record": key, "reason": why},
        )

    def _voided(self, revocation: Revocation) -> dict[str, bytes | None]:
        changes: dict[str, bytes | None] = {}
        for key in (node_key(revocation.node_id), endpoints_key(revocation.node_id)):
            self._floors.pop(key, None)
            held = self.records.get(key)
            if held and revocation.voids(held):
                del self.records[key]
                self.refused[key] = refusal(revocation, held)
                changes[key] = None
        return changes

    def _gone(self, key: str) -> Changes:
        held = self.records.get(key)
        if isinstance(held, Revocation) and held.in_force(self._judge.clock()):
            self._refuse(key, "was removed before its time", wronged=True)
            return {}
        self.refused.pop(key, None)
        self._wronged.discard(key)
        if held and network_of(held) is not None:
            self._floors[key] = held.serial
        if isinstance(held, Node):
            self._say_vanished(held)
        self.records.pop(key, None)
        return self._without(key)

    def _say_vanished(self, node: Node) -> None:
        self._judge.notices.note(
            self.name, node_key(node.id), f"{node.name} went, and nothing says that it was taken out"
        )
        _log.error(
            "a node was deleted from the store without being taken out: rolled back, or tampered with",
            extra={"network": self.name, "node": node.name, "id": node.id},
        )

    def _without(self, key: str) -> Changes:
        return {key: None} if key in self.map.items else {}
