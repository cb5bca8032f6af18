"""A store that times what it is asked for."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from overmesh import trace
from overmesh.controller.store.base import Compare, KeyValue, Op, RangeResult, Store, TxnResult, Watcher
from overmesh.errors import OvermeshError

T = TypeVar("T")


class TimedStore:
    """Another store, and how long it took.

    Args:
        store: does the work.
        took: called with (operation, "ok", the error's class or "cancelled", seconds) after each.

    """

    def __init__(self, store: Store, took: Callable[[str, str, float], None]) -> None:
        self._store = store
        self._took = took

    async def _timed(self, operation: str, work: Awaitable[T]) -> T:
        began, result = time.monotonic(), "ok"
        try:
            with trace.span(f"store {operation}"):
                return await work
        except OvermeshError as error:
            result = type(error).__name__
            raise
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        finally:
            self._took(operation, result, time.monotonic() - began)

    async def get(self, key: str) -> KeyValue | None:
        """See Store."""
        return await self._timed("get", self._store.get(key))

    async def range(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> RangeResult:
        """See Store."""
        work = self._store.range(prefix, after=after, limit=limit, revision=revision)
        return await self._timed("range", work)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """See Store."""
        return await self._timed("txn", self._store.txn(compares, ops))

    def watch(self, prefix: str, start: int) -> Watcher:
        """See Store; how long nothing changed is no latency."""
        return self._store.watch(prefix, start)

    async def compact(self, revision: int) -> None:
        """See Store."""
        await self._timed("compact", self._store.compact(revision))

    async def grant(self, ttl: float) -> int:
        """See Store."""
        return await self._timed("grant", self._store.grant(ttl))

    async def keepalive(self, lease: int) -> float:
        """See Store."""
        return await self._timed("keepalive", self._store.keepalive(lease))

    async def revoke(self, lease: int) -> None:
        """See Store."""
        await self._timed("revoke", self._store.revoke(lease))

    async def close(self) -> None:
        """See Store."""
        await self._store.close()
