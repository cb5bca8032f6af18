"""Group commit: transactions that come while one is under way leave together, as one.

    txn ─┐
    txn ─┼─► waiting ──► one transaction of etcd ──► each its answer
    txn ─┘                  └─ did not hold, or was refused ──► each by itself

A transaction costs a request and its answer, an event of every watch and a turn of every mirror, however
much is in it. Those that went together share a revision. They do when none of them writes what another
one looks at or writes: so they would have had the same results one after the other, in any order.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from aetcd import rpc

from overmesh.controller.store.base import TXN_LIMIT, Compare, Op
from overmesh.errors import StoreError, StoreUnavailableError

# Well below etcd's other limit (--max-request-bytes, 1.5 MiB).
MAX_BYTES = 1 << 20
# Seconds that those who wait give what is under way: it may be at a member that is frozen.
PATIENCE = 0.02

# Sends a transaction and returns etcd's answer.
Send = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Part:
    """One that waits. seen: the keys that it looks at or writes; answer: None when it has to go alone."""

    request: Any
    written: Set[str]
    seen: Set[str]
    answer: "asyncio.Future[Any]"


class Grouping:
    """Sends transactions, several at once where it can. Belongs to one event loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[_Part] = deque()
        self._under_way: set[asyncio.Future[Any]] = set()

    async def txn(self, request: Any, compares: Sequence[Compare], ops: Sequence[Op]) -> Any:
        """Return etcd's answer to a transaction, or to the one that it became part of.

        Args:
            request: as etcd has it.
            compares: the same as the contract has it.
            ops: likewise.

        Raises:
            StoreError: see `Store.txn`.

        """
        written = {op.key for op in ops}
        seen = written | {compare.key for compare in compares}
        part = _Part(request, written, seen, asyncio.get_running_loop().create_future())
        self._waiting.append(part)
        if not self._under_way and len(self._waiting) == 1:
            # Whoever is about to run may have one too.
            asyncio.get_running_loop().call_soon(self._leave)
        answer = await part.answer
        return await self._send(request) if answer is None else answer

    def _leave(self) -> None:
        """Send the next group."""
        if group := self._next_group():
            sending = asyncio.ensure_future(self._send(_together(group)))
            self._under_way.add(sending)
            impatience = asyncio.get_running_loop().call_later(PATIENCE, self._leave)
            sending.add_done_callback(partial(self._arrived, group, impatience))

    def _next_group(self) -> Sequence[_Part]:
        """Take those that waited longest, as many as can go together."""
        group: list[_Part] = []
        written: set[str] = set()
        seen: set[str] = set()
        compares = ops = size = 0
        while self._waiting:
            part = self._waiting[0]
            if not part.answer.done():  # else its caller has given up
                compares, ops = compares + len(part.request.compare), ops + len(part.request.success)
                size += part.request.ByteSize()
                in_the_way = part.written & seen or part.seen & written
                too_much = max(compares, ops) > TXN_LIMIT or size > MAX_BYTES
                if group and (in_the_way or too_much):
                    break
                group.append(part)
                written |= part.written
                seen |= part.seen
            self._waiting.popleft()
        return group

    def _arrived(
        self, group: Sequence[_Part], impatience: asyncio.TimerHandle, sending: "asyncio.Future[Any]"
    ) -> None:
        impatience.cancel()
        self._under_way.discard(sending)
        if not sending.cancelled():
            sending.exception()  # looked at, also when all have given up: else asyncio reports it as lost
        for part in group:
            if not part.answer.done():
                _settle(part.answer, sending, alone=len(group) == 1)
        self._leave()


def _together(group: Sequence[_Part]) -> Any:
    """Return one transaction for all; when that fails each asks again, so it need not tell why."""
    if len(group) == 1:
        return group[0].request
    request = rpc.TxnRequest()
    for part in group:
        request.compare.extend(part.request.compare)
        request.success.extend(part.request.success)
    return request


def _settle(answer: "asyncio.Future[Any]", sending: "asyncio.Future[Any]", *, alone: bool) -> None:
    """Pass on what was answered; None when another of the group may be why nothing was done."""
    error = sending.exception()
    refused = isinstance(error, StoreError) and not isinstance(error, StoreUnavailableError)
    if not alone and (refused or not (error or sending.result().succeeded)):
        answer.set_result(None)
    elif error:
        answer.set_exception(error)
    else:
        answer.set_result(sending.result())
