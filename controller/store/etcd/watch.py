"""Follows one watch through whatever happens to etcd's members.

    position ──► a stream to the member in use ──► batches ──► the feed, position moves on
        ▲                                       │
        └── broken, frozen, no leader ◄─────────┘

The stream is opened one revision earlier than it has to be: at the revision that etcd is compacted to,
deletes may be forgotten already; before it, etcd says so.
"""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from aetcd import rpc

from overmesh.controller.store.etcd.failures import explained, is_passing, refused
from overmesh.controller.store.etcd.members import CALL_TIMEOUT, METADATA, Member, Members
from overmesh.controller.store.etcd.wire import Wire
from overmesh.controller.store.feed import Feed
from overmesh.errors import CompactedError, StoreError, StoreUnavailableError

# Seconds: when nothing has come for the first, the member is asked; it has the second to answer.
QUIET = 3.0
ANSWER = 2.0
_PAUSE = 0.1
_MAX_PAUSE = 2.0
_REFUSALS = ("PermissionDenied", "permission denied", "invalid auth token", "user name is empty")

_log = logging.getLogger("overmesh.controller")


class Watch:
    """One watch: hands every change under a prefix, from revision `position` on, to a feed."""

    def __init__(
        self, members: Members, wire: Wire, prefix: str, position: int, feed: "weakref.ref[Feed]"
    ) -> None:
        self._members = members
        self._wire = wire
        self._span = wire.span(prefix)
        self._position = position
        self._feed = feed
        self._pause = _PAUSE

    async def run(self) -> None:
        """Go on until nobody reads the feed, or etcd says that there is no going on."""
        while self._wanted:
            try:
                await self._follow(await self._member())
            except _BrokenError as why:
                if self._pause == _PAUSE:
                    _log.warning("a watch of the store was interrupted", extra={"reason": str(why)})
            except StoreError as end:
                self._end(end)
                return
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _MAX_PAUSE)

    @property
    def _wanted(self) -> bool:
        feed = self._feed()
        return feed is not None and not feed.ended

    def _end(self, reason: StoreError) -> None:
        if feed := self._feed():
            feed.end(reason)

    async def _member(self) -> Member:
        try:
            return await self._members.ready()
        except StoreUnavailableError as why:
            raise _BrokenError(why.cause) from None

    async def _follow(self, member: Member) -> None:
        """Hand in what one member tells, while it does and somebody reads."""
        try:
            async for response in _responses(member, self._request()):
                if not self._wanted:
                    return
                if response.canceled:
                    raise _cancelled(response, self._members.where)
                self._hand_in(response)
        except grpc.aio.AioRpcError as error:
            self._members.leave(member)
            if is_passing(error):
                raise _BrokenError(f"{member.endpoint}: {error.details()}") from None
            raise explained(error, self._members.where) from None
        except _BrokenError:
            self._members.leave(member)
            raise

    def _request(self) -> Any:
        start, end = self._span
        create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=max(1, self._position - 1))
        return rpc.WatchRequest(create_request=create)

    def _hand_in(self, response: Any) -> None:
        self._pause = _PAUSE
        batches = [batch for batch in self._wire.batches(response.events) if batch.revision >= self._position]
        feed = self._feed()
        if batches and feed is not None:
            feed.extend(batches)
            self._position = batches[-1].revision + 1


class _BrokenError(Exception):
    """A stream has ended; another may go on."""


async def _responses(member: Member, request: Any) -> AsyncIterator[Any]:
    """Yield what comes from one stream, while the member is alive."""
    call = member.watch.Watch(metadata=METADATA)
    try:
        await call.write(request)
        while True:
            # A task, because giving up on a read would give up on the call.
            reading = asyncio.ensure_future(call.read())
            try:
                yield await _answer(call, reading, member.endpoint)
            finally:
                reading.cancel()
    finally:
        call.cancel()


async def _answer(call: Any, reading: "asyncio.Future[Any]", endpoint: str) -> Any:
    """Return what is read; when nothing comes, ask whether anybody is there."""
    await asyncio.wait({reading}, timeout=QUIET)
    if not reading.done():
        await call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        await asyncio.wait({reading}, timeout=ANSWER)
    if not reading.done():
        raise _BrokenError(f"{endpoint} has fallen silent")
    if reading.result() is grpc.aio.EOF:
        raise _BrokenError(f"{endpoint} has ended it")
    return reading.result()


def _cancelled(response: Any, where: str) -> Exception:
    """Return what a watch that etcd has cancelled ends with."""
    if response.compact_revision:
        return compacted(response.compact_revision)
    if any(refusal in response.cancel_reason for refusal in _REFUSALS):
        return refused(where, response.cancel_reason)
    return _BrokenError(f"cancelled: {response.cancel_reason}")


def compacted(revision: int) -> CompactedError:
    """Return the error for an etcd that is compacted to a revision: to us, that one is gone too."""
    cause = f"the oldest revision that etcd keeps is {revision + 1}"
    return CompactedError(cause, "start again from what is current", oldest=revision + 1)


async def oldest_kept(members: Members, wire: Wire, below: int) -> CompactedError:
    """Return the error for a revision that is compacted for certain: only a watch is told since when."""
    member = await members.ready()
    request = rpc.WatchCreateRequest(key=wire.key("/"), start_revision=below)
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            async for response in _responses(member, rpc.WatchRequest(create_request=request)):
                if response.compact_revision:
                    return compacted(response.compact_revision)
    except (TimeoutError, _BrokenError, grpc.aio.AioRpcError):
        pass
    return CompactedError(f"revision {below} is no longer kept", "start again from what is current")
