"""The controllers that run now, each a signed record in every map, so that agents know where to go.

A record is there for as long as its controller's lease. Its id and its bytes follow from what it says, so a
controller that starts again at the same place brings back what agents know already. Controllers that
are reached under one name share one record: whichever sees that it is gone puts it there again.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from overmesh.controller.agents import Agents
from overmesh.controller.fleet.lease import TTL, Lease
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put, absent, unchanged
from overmesh.controller.trust import MeshRoot
from overmesh.errors import LeaseNotFoundError, StoreUnavailableError, UnreachableError
from overmesh.model import Controller, controller_key

_STORE_PAUSE = 2.0
# Seconds without the store after which the lease has ended for certain.
_CUT_OFF = 1.2 * TTL
_LOOK_EVERY = 1.0

_log = logging.getLogger("overmesh.controller")


def controller_id(mesh: Sequence[str], join: Sequence[str]) -> str:
    """Return the id that follows from where a controller is reached: 16 characters of base32."""
    places = ",".join(mesh) + ";" + ",".join(join)
    return base64.b32encode(hashlib.sha256(places.encode()).digest()[:10]).decode().lower()


def called(controller: Controller) -> str:
    """Return what to call it, to people."""
    return f"controller {controller.mesh[0]}"


def known(mirror: Mirror) -> Sequence[Controller]:
    """Return the controllers that run now, those whose records verify, by id."""
    ids = sorted(mirror.held("controllers"))
    records = (view.records.get(controller_key(one)) for view in mirror.networks[:1] for one in ids)
    return [record for record in records if isinstance(record, Controller)]


def reachable(mirror: Mirror, first: Controller) -> Sequence[str]:
    """Return host:port of the mesh ports of all controllers, those of `first` before the others'."""
    others = (target for one in known(mirror) for target in one.mesh)
    return tuple(dict.fromkeys((*first.mesh, *others)))


class Registration:
    """Keeps this controller's record in the map while it runs.

    Args:
        mirror: of the store.
        lease: that the record is there under.
        root: that signs it.
        mesh: host:port of the mesh port, as advertised, best first.
        join: likewise, of the join port.

    """

    def __init__(
        self, mirror: Mirror, lease: Lease, root: MeshRoot, mesh: Sequence[str], join: Sequence[str]
    ) -> None:
        self._mirror = mirror
        self._lease = lease
        self._root = root
        self.record = Controller(controller_id(mesh, join), tuple(mesh), tuple(join))
        self._key = keys.controller(self.record.id)

    async def enter(self) -> None:
        """Put the record there, under the lease of this process; again when other roots' keys are held.

        Raises:
            StoreUnavailableError: it may be there or not.

        """
        # The same for as long as the roots are: agents never go back to an older one.
        newest = max(key.certificate.not_valid_before_utc for key in self._root.keys)
        self.record = replace(
            self.record,
            serial=int(newest.timestamp()),
            roots=tuple(key.fingerprint for key in self._root.keys),
        )
        self._signed = self._root.sign(self.record)
        await self._put(lambda lease: self._change(lease, self._mirror.key(self._key)))

    async def keep(self) -> NoReturn:
        """Put it there again whenever it is gone."""
        while True:
            while self._mirror.key(self._key):
                await self._mirror.reached(self._mirror.revision + 1)
            _log.info("this controller is missing in the map", extra={"controller": self.record.id})
            try:
                await self._put(lambda lease: None if self._mirror.key(self._key) else self._change(lease))
            except StoreUnavailableError as error:
                _log.warning("this controller can't be put into the map", extra={"reason": error.cause})
                await asyncio.sleep(_STORE_PAUSE)

    async def _put(self, plan: Callable[[int], Change | None]) -> None:
        lease = await self._lease.held()
        try:
            await self._mirror.change(lambda: plan(lease))
        except LeaseNotFoundError:
            self._lease.lost(lease)
            await self._put(plan)

    def _change(self, lease: int, before: KeyValue | None = None) -> Change:
        compare = unchanged(before) if before else absent(self._key)
        return Change([compare], [Put(self._key, self._signed, lease)])


async def shed_when_cut_off(lease: Lease, others: Callable[[], bool], agents: Agents) -> NoReturn:
    """End all streams, once, when the store has been silent for longer than a lease lives.

    By then the others are told that this controller is gone, and its agents would learn nothing new here.
    Who comes back all the same is served what is known: perhaps nobody reaches the store.

    Args:
        lease: by which the silence is measured.
        others: tells whether there are other controllers to go to.
        agents: that are connected here.

    """
    while True:
        while lease.silence < _CUT_OFF:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
        if others():
            _log.warning("the store is out of reach: agents are sent to other controllers")
            agents.finish_all(UnreachableError("this controller has lost its store", "another one may do"))
        while lease.silence >= _CUT_OFF:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
