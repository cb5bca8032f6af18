"""The lease under which a controller says what is true only while it runs: that it is there, who is with it.

When the controller dies its lease ends, and with it what it said.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from overmesh.controller.store.base import Store
from overmesh.errors import LeaseNotFoundError, StoreUnavailableError

# Seconds.
TTL = 30.0

_log = logging.getLogger("overmesh.controller")


class Lease:
    """One lease of the store: asked for when it is first needed, and again after it was lost.

    Args:
        store: that grants it.
        clock: monotonic seconds.

    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._granting = asyncio.Lock()
        self._on_loss: list[Callable[[], None]] = []
        self._heard = clock()
        self.id = 0

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when what was said under the lease has to be said again."""
        self._on_loss.append(listener)

    @property
    def silence(self) -> float:
        """For how many seconds the store has said nothing of it."""
        return self._clock() - self._heard

    async def held(self) -> int:
        """Return the lease.

        Raises:
            StoreUnavailableError: there is none, and none can be had.

        """
        async with self._granting:
            if not self.id:
                self.id = await self._store.grant(TTL)
                self._heard = self._clock()
        return self.id

    def lost(self, lease: int) -> None:
        """Say that the store does not know it: the next one asked for is another."""
        self._heard = self._clock()
        if lease == self.id:
            _log.warning("the lease of this controller had ended; what it said is said again")
            self.id = 0
            for listener in self._on_loss:
                listener()

    async def keep_alive(self) -> NoReturn:
        """Renew it for ever; after it was lost, have another."""
        while True:
            await asyncio.sleep(TTL / 3)
            try:
                lease = await self.held()
                await self._store.keepalive(lease)
                self._heard = self._clock()
            except LeaseNotFoundError:
                self.lost(lease)
            except StoreUnavailableError as error:
                _log.warning("the lease can't be renewed", extra={"reason": error.cause})

    async def end(self) -> None:
        """Take back at once what was said under it; without the store, it ends by itself."""
        if self.id:
            with suppress(StoreUnavailableError):
                await self._store.revoke(self.id)
