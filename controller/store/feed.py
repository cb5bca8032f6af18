"""A watch as its reader sees it: batches that have arrived, then more to come, or the reason why not."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Self

from overmesh.controller.store.base import WatchBatch


class Feed(AsyncIterator[WatchBatch]):
    """An iterator over batches that someone else hands in, on the same event loop.

    Giving up on one `anext` (a timeout, a cancelled task) loses nothing: the next one goes on.
    Whoever hands in should hold the feed weakly: a reader that is gone leaves no other sign.
    """

    def __init__(self) -> None:
        self._batches: deque[WatchBatch] = deque()
        self._end: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether handing in more is in vain."""
        return self._end is not None

    def extend(self, batches: Iterable[WatchBatch]) -> None:
        """Hand in what comes next; in vain once the feed has ended."""
        if not self.ended:
            self._batches.extend(batches)
            self._changed.set()

    def end(self, reason: Exception) -> None:
        """Let the reader have what has arrived, then this error; the first reason stays."""
        if not self.ended:
            self._end = reason
            self._changed.set()

    async def aclose(self) -> None:
        """Stop reading: what has arrived is dropped."""
        self._batches.clear()
        self.end(StopAsyncIteration())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._batches:
            if self._end is not None:
                raise self._end
            self._changed.clear()
            await self._changed.wait()
        return self._batches.popleft()
