"""What a request does to the embedded store. No threads and no clock: the caller says what time it is.

The caller begins and commits the SQLite transaction, which may span many requests, and calls `settle`
before it commits. A request is refused before its first write, so that a refusal leaves nothing to
undo; whatever goes wrong later undoes the whole transaction, and then `load` brings the memory back
in line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from overmesh.controller.store.base import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Op,
    Put,
    Target,
    TxnResult,
    WatchBatch,
)
from overmesh.controller.store.sqlite.tables import Meta, Tables
from overmesh.errors import CompactedError, FutureRevisionError, LeaseNotFoundError


@dataclass(slots=True)
class Lease:
    """Times in seconds. The deadline is in memory only: after a restart a lease gets its full time."""

    ttl: float
    deadline: float


class Ledger:
    """The writer's view of the tables, with what it need not read again."""

    def __init__(self, tables: Tables, now: float) -> None:
        self._tables = tables
        self._leases: dict[int, Lease] = {}
        self._next_expiry = math.inf
        self.load(now)

    def load(self, now: float) -> None:
        """Read what is committed; a lease whose deadline is not known gets its full time."""
        self._meta = self._stored = self._tables.meta()
        self._events: list[WatchBatch] = []
        self._leases = {
            lease: self._leases.get(lease, Lease(ttl, now + ttl))
            for lease, ttl in self._tables.leases().items()
        }
        self._find_next_expiry()

    @property
    def next_expiry(self) -> float:
        """A time before which no lease expires."""
        return self._next_expiry

    def settle(self) -> list[WatchBatch]:
        """Write what is written once per commit; return the changes that the commit will make true."""
        if self._meta != self._stored:
            self._tables.store_meta(self._meta)
            self._stored = self._meta
        events, self._events = self._events, []
        return events

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op], now: float) -> TxnResult:
        """See Store.txn; the ops name no key twice."""
        if not all(_holds(compare, self._tables.find(compare.key)) for compare in compares):
            return TxnResult(False, self._meta.revision)
        for op in ops:
            if isinstance(op, Put) and op.lease:
                self._living(op.lease, now)
        self._change(ops)
        return TxnResult(True, self._meta.revision)

    def replay(self, prefix: str, start: int) -> tuple[int, list[WatchBatch]]:
        """Return the first revision still to come for a watch from `start`, and what it has missed."""
        upcoming = self._meta.revision + 1
        if not start:
            return upcoming, []
        check_kept(start, self._meta)
        return max(start, upcoming), self._tables.changes(prefix, start)

    def compact(self, revision: int) -> None:
        """See Store.compact; doing it twice is no error."""
        check_kept(revision, self._meta)
        check_happened(revision, self._meta)
        self._tables.compact(revision)
        self._meta = self._meta._replace(compacted=revision)

    def grant(self, ttl: float, now: float) -> int:
        """See Store.grant."""
        lease = self._tables.add_lease(ttl)
        self._leases[lease] = Lease(ttl, now + ttl)
        self._next_expiry = min(self._next_expiry, now + ttl)
        return lease

    def keepalive(self, lease: int, now: float) -> float:
        """See Store.keepalive."""
        living = self._living(lease, now)
        living.deadline = now + living.ttl
        return living.ttl

    def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        if self._leases.pop(lease, None):
            self._change([Delete(key) for key in self._tables.keys_of(lease)])
            self._tables.remove_lease(lease)

    def expire(self, now: float) -> None:
        """Revoke the leases whose deadline has come."""
        if now < self._next_expiry:
            return
        for lease in [lease for lease, living in self._leases.items() if living.deadline <= now]:
            self.revoke(lease)
        self._find_next_expiry()

    def _find_next_expiry(self) -> None:
        # Only ever too early: keepalives do not move it, so that they stay cheap.
        self._next_expiry = min((lease.deadline for lease in self._leases.values()), default=math.inf)

    def _living(self, lease: int, now: float) -> Lease:
        living = self._leases.get(lease)
        if living is None or living.deadline <= now:
            raise LeaseNotFoundError(f"lease {lease} has expired", "ask for a new one")
        return living

    def _change(self, ops: Sequence[Op]) -> None:
        revision = self._meta.revision + 1
        events = tuple(event for op in ops if (event := self._event(op, revision)))
        if events:
            self._tables.record(revision, events)
            self._meta = self._meta._replace(revision=revision)
            self._events.append(WatchBatch(revision, events))

    def _event(self, op: Op, revision: int) -> Event | None:
        old = self._tables.find(op.key)
        if isinstance(op, Delete):
            return Event(op.key, None) if old else None
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        return Event(op.key, KeyValue(op.key, op.value, created, revision, version, op.lease))


def check_kept(revision: int, meta: Meta) -> None:
    """Raise CompactedError for a revision before the oldest kept one."""
    if revision < meta.compacted:
        raise CompactedError(
            f"revision {revision} is no longer kept; the oldest is {meta.compacted}",
            "start again from what is current",
            oldest=meta.compacted,
        )


def check_happened(revision: int, meta: Meta) -> None:
    """Raise FutureRevisionError for a revision after the latest."""
    if revision > meta.revision:
        raise FutureRevisionError(f"revision {revision} has not happened; the latest is {meta.revision}")


def _holds(compare: Compare, kv: KeyValue | None) -> bool:
    match compare.target:
        case Target.VALUE:
            return kv is not None and kv.value == compare.operand
        case Target.CREATE:
            return compare.operand == (kv.create_revision if kv else 0)
        case Target.MOD:
            return compare.operand == (kv.mod_revision if kv else 0)
        case Target.VERSION:
            return compare.operand == (kv.version if kv else 0)
