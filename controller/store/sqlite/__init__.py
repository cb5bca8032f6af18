"""The embedded store: one controller, one file, nothing to operate.

SqliteStore ─┬─ writes, watches ──► writer.py   one thread, one commit for many requests
             │                        └─ ledger.py   what a request does
             └─ reads ──► here            threads with connections of their own
                   both ──► tables.py   all SQL        file.py   lock, checks, errors
"""

import asyncio
import queue
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from os import PathLike
from pathlib import Path
from typing import Self, TypeVar

from overmesh.controller.store.base import Compare, KeyValue, Op, RangeResult, TxnResult, check_ops
from overmesh.controller.store.feed import Feed
from overmesh.controller.store.sqlite.file import StoreFile, translated
from overmesh.controller.store.sqlite.ledger import check_happened, check_kept
from overmesh.controller.store.sqlite.tables import Tables
from overmesh.controller.store.sqlite.writer import Writer
from overmesh.errors import StoreUnavailableError

T = TypeVar("T")

# Two, so that a get need not wait for the range of a whole network.
READERS = 2


class SqliteStore:
    """A Store (see base.py) in one SQLite file. Belongs to the event loop it was opened in."""

    def __init__(self, file: StoreFile, writer: Writer, readers: "_Readers") -> None:
        self._file = file
        self._writer = writer
        self._readers = readers
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, path: str | PathLike[str], *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Open the store, making the file when it is not there; call it from the event loop.

        Args:
            path: the file. Its directory is made, too.
            clock: what leases expire by, in seconds.

        Raises:
            StoreBusyError: another controller has it open; names its pid.
            StoreCorruptError: the file is something else, damaged, or of another version.
            StoreUnavailableError: the file system refuses.

        """
        loop = asyncio.get_running_loop()
        file = StoreFile.open(Path(path))
        with ExitStack() as undo:
            undo.callback(file.close)
            connection, *others = [undo.enter_context(closing(file.connect())) for _ in range(1 + READERS)]
            with translated(file.path):
                writer = Writer(connection, file.path, loop, clock)
            undo.pop_all()
        return cls(file, writer, _Readers(others, file.path))

    async def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        return await self._readers.call(lambda tables: tables.find(key))

    async def range(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> RangeResult:
        """See Store.range."""
        return await self._readers.call(lambda tables: _range(tables, prefix, after, limit, revision))

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """See Store.txn."""
        compares, ops = tuple(compares), tuple(ops)
        check_ops(ops)
        return await self._writer.call(lambda ledger, now: ledger.txn(compares, ops, now))

    def watch(self, prefix: str, start: int) -> Feed:
        """See Store.watch. It is registered when this returns; `aclose` or forgetting it ends it."""
        return self._writer.watch(prefix, start)

    async def compact(self, revision: int) -> None:
        """See Store.compact; doing it twice is no error."""
        await self._writer.call(lambda ledger, _: ledger.compact(revision))

    async def grant(self, ttl: float) -> int:
        """See Store.grant. After a restart every lease has its full time again."""
        return await self._writer.call(lambda ledger, now: ledger.grant(ttl, now))

    async def keepalive(self, lease: int) -> float:
        """See Store.keepalive."""
        return await self._writer.call(lambda ledger, now: ledger.keepalive(lease, now))

    async def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        await self._writer.call(lambda ledger, _: ledger.revoke(lease))

    async def close(self) -> None:
        """See Store.close; closing twice is no error."""
        if self._closing is None:
            self._writer.stop()
            self._readers.stop()
            self._closing = asyncio.create_task(asyncio.to_thread(self._release))
        await asyncio.shield(self._closing)

    def _release(self) -> None:
        self._readers.join()
        self._writer.join()  # after the readers: the last connection to go folds the log into the file
        self._file.close()


class _Readers:
    """Threads that each read through a connection of their own, beside the writer."""

    def __init__(self, connections: Sequence[sqlite3.Connection], path: Path) -> None:
        self._connections = connections
        self._path = path
        self._stopped = False
        self._idle: queue.SimpleQueue[Tables] = queue.SimpleQueue()
        for connection in connections:
            self._idle.put(Tables(connection))
        self._threads = ThreadPoolExecutor(len(connections), "store-reader")

    async def call(self, question: Callable[[Tables], T]) -> T:
        """Return what a question finds in one state of the tables, no older than the call."""
        if self._stopped:
            raise StoreUnavailableError(f"the store {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)

    def stop(self) -> None:
        """Accept no more questions."""
        self._stopped = True

    def join(self) -> None:
        """Wait for the answers to those accepted; not in the event loop."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def _answer(self, question: Callable[[Tables], T]) -> T:
        tables = self._idle.get()
        try:
            with translated(self._path), tables.transaction("DEFERRED"):
                return question(tables)
        finally:
            self._idle.put(tables)


def _range(tables: Tables, prefix: str, after: str, limit: int, revision: int) -> RangeResult:
    meta = tables.meta()
    wanted = limit + 1 if limit else -1  # one more tells whether there are more
    if revision:
        check_kept(revision, meta)
        check_happened(revision, meta)
        kvs = tables.past(prefix, after, wanted, revision)
    else:
        kvs = tables.current(prefix, after, wanted)
    more = bool(limit) and len(kvs) > limit
    return RangeResult(tuple(kvs[:limit] if more else kvs), meta.revision, more)
