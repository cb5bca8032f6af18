"""Lets changes of the store run side by side, and those that contend for a key one after the other.

A transaction finds out by itself when somebody was faster. This only spares a controller from racing
against itself, where every defeat costs planning and signing again.
"""

import asyncio
from collections.abc import Iterator, Set
from contextlib import contextmanager


class Turns:
    """Which keys are being written now, and who waits for that."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._released = asyncio.Event()

    def free(self, keys: Set[str]) -> bool:
        """Tell whether nobody writes any of these keys."""
        return self._taken.isdisjoint(keys)

    async def until_free(self, keys: Set[str]) -> None:
        """Return when nobody writes any of them; those who waited longest come first."""
        while not self.free(keys):
            await self._released.wait()

    @contextmanager
    def taking(self, keys: Set[str]) -> Iterator[None]:
        """Keep others from writing these keys, which are free, for the length of a block."""
        self._taken |= keys
        try:
            yield
        finally:
            self._taken -= keys
            released, self._released = self._released, asyncio.Event()
            released.set()


class Crowd:
    """Has those that come soon after each other go on at the same time; who comes alone is not held up.

    What they then ask of the store goes out together (see etcd/grouping.py).
    """

    def __init__(self, moment: float) -> None:
        self._moment = moment
        self._next = 0.0
        self._gate: asyncio.Event | None = None

    async def go_on(self) -> None:
        """Return at once, or within `moment` seconds with all others that came since."""
        loop = asyncio.get_running_loop()
        if self._gate is None:
            if loop.time() >= self._next:
                self._next = loop.time() + self._moment
                return
            self._gate = asyncio.Event()
            loop.call_at(self._next, self._open, self._gate)
        await self._gate.wait()

    def _open(self, gate: asyncio.Event) -> None:
        self._next += self._moment
        self._gate = None
        gate.set()
