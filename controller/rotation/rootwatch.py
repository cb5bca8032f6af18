"""What every controller does about a rotation of the mesh root, whoever asked for it (roots.py).

All of it follows from the store and from files that are copied here: it goes on after a crash at any point.

    the next root is trusted, and its key is here  --> hold it, and say so in this controller's record
    the pin in the store names another root        --> sign with that one
    other roots are trusted                        --> show and take certificates of those
    something is not signed by the root that signs --> sign it again
    the old root is retired                        --> put the next one's files in its place
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from overmesh.controller.mirror import Mirror
from overmesh.controller.rotation.resigning import Resigning
from overmesh.controller.store import keys
from overmesh.controller.trust import MeshRoot, rootfiles
from overmesh.errors import OvermeshError, StateError

# Seconds until a controller looks again for a key that was copied to it, and for what is left to be signed.
_LOOK_EVERY = 5.0
# Seconds to leave between two looks when the store changes all the time.
_PAUSE = 0.2

_log = logging.getLogger("overmesh.controller")


class RootWatch:
    """Keeps this controller's keys, certificates and signatures those of the store's root.

    Args:
        mirror, root, resigning: the parts of this controller.
        state_dir: where the root's files are.
        announce: puts this controller's record into the map again, which says what keys it holds.

    """

    def __init__(
        self,
        mirror: Mirror,
        root: MeshRoot,
        resigning: Resigning,
        state_dir: Path,
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        self._mirror = mirror
        self._root = root
        self._resigning = resigning
        self._state_dir = state_dir
        self._announce = announce
        self._trusted = mirror.roots
        self._announced = (root.keys, root.signing)
        self._looking = asyncio.Lock()
        self._said = ""

    async def follow(self) -> NoReturn:
        """Do what follows from the store and from files that are copied here, for ever."""
        while True:
            try:
                await self.look()
                self._said = ""
            except OvermeshError as error:
                self._complain(error.cause)
            await asyncio.sleep(_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._mirror.reached(self._mirror.revision + 1)

    def _complain(self, cause: str) -> None:
        if cause != self._said:
            _log.error("the mesh root's rotation can't go on here", extra={"reason": cause})
        self._said = cause

    async def look(self) -> None:
        """Do what is to be done now.

        Raises:
            StateError: the key that is to sign is not here.
            StoreUnavailableError: the rest is done at the next look.

        """
        async with self._looking:
            self._follow_keys()
            if self._mirror.roots != self._trusted:
                self._trusted = self._mirror.roots
                self._root.hold(*self._root.keys)
            present = (self._root.keys, self._root.signing)
            if self._announced != present:
                await self._announce()
                self._announced = present
            if len(self._trusted.keys) > 1 and self._root.fingerprint == self._trusted.fingerprints[-1]:
                await self._resigning.finish()

    def _follow_keys(self) -> None:
        """Hold the keys of the roots that are trusted, and sign with the one that the store names."""
        trusted = self._mirror.roots.fingerprints
        if trusted[-1] not in {key.fingerprint for key in self._root.keys}:
            following = rootfiles.next_root(self._state_dir)
            if following and following.fingerprint == trusted[-1]:
                self._root.hold(*self._root.keys, following)
                _log.info("the next root's key is here", extra={"root": following.fingerprint})
        kv = self._mirror.key(keys.ROOT_PIN)
        pin = kv.value if kv else self._root.pin
        if pin != self._root.pin and not self._root.sign_with(pin):
            raise StateError(
                f"the store is signed with root {pin.hex()[:16]}…, whose key is not in {self._state_dir}",
                "copy root.next.key and root.next.pem from a controller that has them",
            )
        if len(self._root.keys) > 1 and self._root.keys[0].fingerprint not in trusted:
            rootfiles.promote(self._state_dir)
            self._root.hold(self._root.signing)
            _log.warning("the old mesh root is retired", extra={"root": self._root.fingerprint})
