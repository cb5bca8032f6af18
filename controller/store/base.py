"""The store's contract: etcd's semantics, in as few words as the controller needs.

Every change happens in a transaction and gets the next revision; all changes of one transaction
share it, and so may transactions that are made at once and touch different keys. An empty store is at
revision 1. A key remembers the revision that created it and the one that last changed it. Readers may
ask for the past until it is compacted. A watch continues from any kept revision without gap or double.
Keys are ASCII and not empty. The source of these semantics: etcd's API documentation, etcd 3.4.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

# etcd's own limit (--max-txn-ops), for a transaction's comparisons and for its operations, each by itself.
TXN_LIMIT = 128
# How many of either a change may have: the rest is for what makes it known (audit.py).
MAX_OPS = 100


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key at one revision."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Target(Enum):
    """What of a key a comparison looks at. A key that is absent counts as 0 (VALUE: never equal)."""

    CREATE = "create"
    MOD = "mod"
    VERSION = "version"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """True when the key's target equals the operand."""

    key: str
    target: Target
    operand: int | bytes


def absent(key: str) -> Compare:
    """Return the comparison that holds while nobody has the key."""
    return Compare(key, Target.CREATE, 0)


def unchanged(kv: KeyValue) -> Compare:
    """Return the comparison that holds while the key is as it was read."""
    return Compare(kv.key, Target.MOD, kv.mod_revision)


def as_read(key: str, kv: KeyValue | None) -> Compare:
    """Return the comparison that holds while a key is as it was read, be it absent."""
    return unchanged(kv) if kv else absent(key)


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with a lease, for as long as that lives."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; no error when it is absent."""

    key: str


Op = Put | Delete


def check_ops(ops: Sequence[Op]) -> None:
    """Raise what `Store.txn` raises for ops that can't be."""
    keys = [op.key for op in ops]
    if len(set(keys)) < len(keys):
        raise ValueError(f"a key twice in one transaction: {sorted(keys)}")
    for op in ops:
        if not op.key or not op.key.isascii():
            raise ValueError(f"not a key: {op.key!r}")
        if isinstance(op, Put) and not isinstance(op.value, bytes):
            raise TypeError(f"not bytes: the value of {op.key}")


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What became of a transaction.

    succeeded: all comparisons held and the ops are durable. revision: of the change; when nothing was
    changed, one that a watch comes to, and as late as that of every compared key that is there.
    """

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys in order, and the revision at which this was true."""

    kvs: tuple[KeyValue, ...]
    revision: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed (kv) or went away (kv is None)."""

    key: str
    kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events of one revision, in the order of its ops: never split, never merged with another's."""

    revision: int
    events: tuple[Event, ...]


class Watcher(Protocol):
    """What `Store.watch` returns: an asynchronous iterator that can be ended."""

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        """Return itself."""

    async def __anext__(self) -> WatchBatch:
        """Return the next revision's events, once there are any."""

    async def aclose(self) -> None:
        """End it; forgetting it does the same, later."""


class Store(Protocol):
    """What the controller keeps the truth in. Every method may raise StoreUnavailableError."""

    async def get(self, key: str) -> KeyValue | None:
        """Return the key as it is now, or None."""

    async def range(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> RangeResult:
        """Return keys that start with prefix, in order.

        Args:
            prefix: empty for all.
            after: only keys greater than this one (to page on).
            limit: at most so many; 0: all. `more` tells that there are further ones.
            revision: as of then; 0: now.

        Raises:
            CompactedError: that revision is no longer kept.
            FutureRevisionError: that revision has not happened.

        """

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """Carry out all ops if all comparisons hold, else nothing. Durable when it returns.

        A transaction that changes nothing (no ops, or only deletes of absent keys) takes no revision.

        Raises:
            LeaseNotFoundError: a Put names a lease that is gone; nothing was done.
            UnconfirmedError: it may or may not have happened, now or in a moment.
            StoreUnavailableError: it has not, and will not.
            TypeError: a value that is not bytes.
            ValueError: one key twice, or a key that is empty or not ASCII.

        """

    def watch(self, prefix: str, start: int) -> Watcher:
        """Yield every change under prefix from revision `start` on (0: from now), for ever.

        It is registered when this returns; nothing is skipped between a range's revision R and a watch
        from R + 1.

        Raises:
            CompactedError: `start` is no longer kept, or a compaction was faster than the reader.
            StoreUnavailableError: the store was closed or lost; an outage that may end is waited out.

        """

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`; what is current stays.

        Raises:
            CompactedError: already done beyond that.
            FutureRevisionError: that revision has not happened.

        """

    async def grant(self, ttl: float) -> int:
        """Return a new lease that lives `ttl` seconds from its last keepalive."""

    async def keepalive(self, lease: int) -> float:
        """Renew a lease and return its time to live in seconds.

        Raises:
            LeaseNotFoundError: too late.

        """

    async def revoke(self, lease: int) -> None:
        """End a lease now: its keys are deleted in one revision. No error when it is gone."""

    async def close(self) -> None:
        """Finish what was accepted, then refuse; watches end with StoreUnavailableError."""


async def head(store: Store) -> int:
    """Return a store's revision, as it is now.

    Raises:
        StoreUnavailableError: it can't say.

    """
    # Any range tells. This one is of all that the controller may read.
    return (await store.range("/", limit=1)).revision
