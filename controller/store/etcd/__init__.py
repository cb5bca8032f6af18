"""The shared store: many controllers, one etcd (3.4 or later).

EtcdStore ─┬─ reads ────────────────────► members.py   the member in use, or the next
           ├─ changes ──► grouping.py ──┘   └─ failures.py   etcd's errors as ours
           └─ watches ──► watch.py   resumes by revision
     both ──► wire.py   our values as etcd's messages       target.py   the URL, tls.py   its files

aetcd, the asyncio line of etcd3, is used for the stubs that it has generated from etcd's API
(`aetcd.rpc`) and for nothing else. etcd3's own release no longer imports with a current protobuf;
aetcd's client knows no TLS, no read at a revision, and watches that can end without a word.
"""

import asyncio
import math
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import grpc
import grpc.aio
from aetcd import rpc

from overmesh.controller.store.base import Compare, KeyValue, Op, RangeResult, TxnResult, check_ops
from overmesh.controller.store.etcd.grouping import Grouping
from overmesh.controller.store.etcd.members import Member, Members
from overmesh.controller.store.etcd.target import EtcdTarget
from overmesh.controller.store.etcd.watch import Watch, oldest_kept
from overmesh.controller.store.etcd.wire import Wire, made_a_change, newest_seen
from overmesh.controller.store.feed import Feed
from overmesh.errors import CompactedError, LeaseNotFoundError, StoreError, StoreUnavailableError

# Keys in one answer: a few megabytes.
PAGE = 5_000


class EtcdStore:
    """A Store (see base.py) in one etcd, below one prefix. Belongs to the event loop it was opened in."""

    def __init__(self, target: EtcdTarget) -> None:
        self._members = Members(target)
        self._wire = Wire(target.prefix.encode())
        self._grouping = Grouping(self._send)
        self._watches: dict[asyncio.Task[None], weakref.ref[Feed]] = {}
        self._beginnings: set[asyncio.Task[int]] = set()
        self._accepted = 0
        self._finished = asyncio.Event()
        self._finished.set()
        self._closing: asyncio.Task[None] | None = None
        # The last change that this store knows to have made.
        self._changed_at = 0

    @classmethod
    def open(cls, rest: str) -> Self:
        """Return the store at a URL, given without its scheme; etcd is asked at the first call.

        Raises:
            ConfigError: the URL, or a file it names, can't be right.

        """
        return cls(EtcdTarget.parse(rest))

    async def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        request = rpc.RangeRequest(key=self._wire.key(key))
        async with self._call():
            answer = await self._members.call(lambda member: member.kv.Range, request)
        return self._wire.key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> RangeResult:
        """See Store.range."""
        async with self._call():
            try:
                return await self._pages(prefix, after, limit, revision)
            except CompactedError:
                if revision:
                    raise
                # It took so long that its own beginning is forgotten.
                return await self._pages(prefix, after, limit, revision)

    async def _pages(self, prefix: str, after: str, limit: int, revision: int) -> RangeResult:
        first = page = await self._page(prefix, after, limit, revision)
        kvs = list(first.kvs)
        while page.more and len(kvs) < (limit or math.inf):
            page = await self._page(prefix, kvs[-1].key, max(limit - len(kvs), 0), revision or first.revision)
            kvs += page.kvs
        return RangeResult(tuple(kvs), first.revision, page.more)

    async def _page(self, prefix: str, after: str, limit: int, revision: int) -> RangeResult:
        ops = self._wire.page(prefix, after, min(limit or PAGE, PAGE), revision)
        try:
            answer = await self._members.call(lambda member: member.kv.Txn, rpc.TxnRequest(success=ops))
        except CompactedError:
            raise await oldest_kept(self._members, self._wire, max(1, revision - 1)) from None
        found = answer.responses[0].response_range
        return RangeResult(tuple(map(self._wire.key_value, found.kvs)), answer.header.revision, found.more)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """See Store.txn."""
        check_ops(ops)
        request = self._wire.txn(compares, ops)
        async with self._call():
            answer = await self._grouping.txn(request, compares, ops)
        if answer.succeeded and made_a_change(answer):
            self._changed_at = max(self._changed_at, answer.header.revision)
            return TxnResult(succeeded=True, revision=answer.header.revision)
        # Not etcd's own revision: what others keep there moves it, and no watch of ours would come to it.
        return TxnResult(answer.succeeded, max(self._changed_at, newest_seen(answer)))

    async def _send(self, request: Any) -> Any:
        if self._beginnings:
            await asyncio.wait(self._beginnings)  # a watch "from now" is to see this
        return await self._members.call(lambda member: member.kv.Txn, request, repeatable=False)

    def watch(self, prefix: str, start: int) -> Feed:
        """See Store.watch. An outage only interrupts it; it ends when etcd refuses, or with the store."""
        feed = Feed()
        if self._closing:
            feed.end(self._closed())
            return feed
        beginning = None
        if not start:
            beginning = asyncio.create_task(self._upcoming(prefix))
            self._beginnings.add(beginning)
            beginning.add_done_callback(self._beginnings.discard)
        reference = weakref.ref(feed, lambda _: task.cancel())
        task = asyncio.create_task(self._follow(prefix, start, beginning, reference))
        self._watches[task] = reference
        task.add_done_callback(self._watches.pop)
        return feed

    async def _upcoming(self, prefix: str) -> int:
        """Return the first revision that has not happened."""
        ops = self._wire.page(prefix, "", 1, 0)
        answer = await self._members.call(lambda member: member.kv.Txn, rpc.TxnRequest(success=ops))
        return int(answer.header.revision) + 1

    async def _follow(
        self, prefix: str, start: int, beginning: asyncio.Task[int] | None, reference: "weakref.ref[Feed]"
    ) -> None:
        try:
            position = await beginning if beginning else start
        except StoreError as error:
            if feed := reference():
                feed.end(error)
            return
        await Watch(self._members, self._wire, prefix, position, reference).run()

    async def compact(self, revision: int) -> None:
        """See Store.compact; doing it twice is no error. It concerns all of this etcd, not the prefix."""
        request = rpc.CompactionRequest(revision=revision - 1)  # the last that is forgotten: see watch.py
        async with self._call():
            await self._page("/", "", 1, revision)  # raises what there is to raise
            with suppress(CompactedError):  # exactly so by now
                await self._members.call(lambda member: member.kv.Compact, request)

    async def grant(self, ttl: float) -> int:
        """See Store.grant; etcd counts in whole seconds."""
        request = rpc.LeaseGrantRequest(TTL=math.ceil(ttl))
        async with self._call():
            return int((await self._members.call(lambda member: member.lease.LeaseGrant, request)).ID)

    async def keepalive(self, lease: int) -> float:
        """See Store.keepalive."""
        async with self._call():
            answer = await self._members.call(_keepalive, rpc.LeaseKeepAliveRequest(ID=lease))
        if answer.TTL <= 0:
            raise LeaseNotFoundError(f"lease {lease} has expired", "ask for a new one")
        return float(answer.TTL)

    async def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        async with self._call():
            try:
                request = rpc.LeaseRevokeRequest(ID=lease)
                await self._members.call(lambda member: member.lease.LeaseRevoke, request)
            except LeaseNotFoundError:
                return

    async def close(self) -> None:
        """See Store.close; closing twice is no error."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._finished.wait()
        watches = dict(self._watches)
        for task, reference in watches.items():
            if feed := reference():
                feed.end(self._closed())
            task.cancel()
        await asyncio.gather(*watches, *self._beginnings, return_exceptions=True)
        await self._members.close()

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Refuse when closed; else let closing wait for this."""
        if self._closing:
            raise self._closed()
        self._accepted += 1
        self._finished.clear()
        try:
            yield
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._finished.set()

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"the store {self._members.where} is closed")


def _keepalive(member: Member) -> Any:
    """Return etcd's keepalive stream as a call with one answer."""

    async def call(request: Any, **options: Any) -> Any:
        stream = member.lease.LeaseKeepAlive(**options)
        try:
            await stream.write(request)
            answer = await stream.read()
            if answer is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "ended"
                )
            return answer
        finally:
            stream.cancel()

    return call
