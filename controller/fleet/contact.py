"""Whether the store can be asked now, and whether all that it holds is known here.

A controller goes on answering from memory while its store is away. What it says may be old then: it says so,
and `wait` does not take the last map that it knows for the newest.
"""

import asyncio
from contextlib import suppress

from overmesh.controller.fleet.lease import Lease
from overmesh.controller.mirror import Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put, Store, head
from overmesh.errors import NotYetError, StoreUnavailableError
from overmesh.model import Problem

# Seconds.
_MOMENT = 0.3
_LEAST = 1.0
_PAUSE = 0.5


class Contact:
    """Asks the store for its head.

    Args:
        store: of record.
        mirror: that follows it.
        lease: by which the silence is measured.

    """

    def __init__(self, store: Store, mirror: Mirror, lease: Lease) -> None:
        self._store = store
        self._mirror = mirror
        self._lease = lease

    async def current(self) -> list[Problem]:
        """Have the mirror show what anybody was told is done before this call, as far as a moment allows.

        Where others use the same etcd their changes can't be told from ours: then it takes the whole moment.

        Returns:
            What to say when the store does not answer; nothing when it does.

        """
        try:
            async with asyncio.timeout(_MOMENT):
                revision = await head(self._store)
        except StoreUnavailableError as error:
            return [self._unheard(error.cause)]
        except TimeoutError:
            return [self._unheard(f"no answer within {_MOMENT} s")]
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOMENT):
                await self._mirror.reached(revision)
        return []

    def _unheard(self, why: str) -> Problem:
        return Problem("store", f"not heard for {self._lease.silence:.0f} s: {why}")

    async def all_known(self, seconds: float) -> None:
        """Return once the mirror shows all that was done, by whomever, before this call.

        Args:
            seconds: to try for, while the store is away; it gets one at least.

        Raises:
            NotYetError: that can't be found out.

        """
        why = "it does not answer"
        try:
            async with asyncio.timeout(max(seconds, _LEAST)):
                while True:
                    try:
                        await self._reach_head()
                    except StoreUnavailableError as error:
                        why = error.cause
                    else:
                        return
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            fix = "see meshctl controller list, or ask at another controller"
            raise NotYetError(f"the store can't be asked: {why}", fix) from None

    async def _reach_head(self) -> None:
        revision = await head(self._store)
        try:
            async with asyncio.timeout(_MOMENT):
                await self._mirror.reached(revision)
        except TimeoutError:
            # The watch is behind, or others use this etcd too and the head is theirs. A change of our own
            # comes back through the watch after all that was done before it.
            fence = await self._store.txn([], [Put(keys.FENCE, b"")])
            await self._mirror.reached(fence.revision)
