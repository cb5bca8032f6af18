"""Who is connected to this controller, as every controller can read it: under one lease of ours.

When this controller dies its lease ends, and with it what it said. Agents come and go in crowds, so
what changed is written in batches; what is written is whatever is true by then.
"""

import asyncio
import json
import logging
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NoReturn

from overmesh.controller import keys
from overmesh.controller.mirror import MAX_OPS, Mirror
from overmesh.controller.store.base import Delete, KeyValue, Op, Put, Store
from overmesh.controller.trust import Identity
from overmesh.errors import LeaseNotFoundError, StoreUnavailableError

LEASE_TTL = 30.0
_PAUSE = 0.2
_STORE_PAUSE = 2.0

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Health:
    """What a host reports about itself."""

    backend: str = ""
    backend_reason: str = ""
    mtu: int = 0


def read_health(kv: KeyValue | None) -> Health:
    """Return what a presence key says; nothing known when there is none, or none that can be read."""
    try:
        value = json.loads(kv.value) if kv else {}
        return Health(str(value["backend"]), str(value["backend_reason"]), int(value["mtu"]))
    except (ValueError, TypeError, KeyError):
        return Health()


class Presence:
    """Keeps what this controller says about its agents true."""

    def __init__(self, store: Store, mirror: Mirror) -> None:
        self._store = store
        self._mirror = mirror
        self._id = secrets.token_hex(4)
        self._lease = 0
        self._online: set[Identity] = set()
        self._health: dict[Identity, Health] = {}
        self._changed: set[Identity] = set()
        self._wake = asyncio.Event()

    def seen(self, identity: Identity, online: bool) -> None:
        """Say that a node came or went."""
        (self._online.add if online else self._online.discard)(identity)
        self._touch(identity)

    def reported(self, identity: Identity, health: Health) -> None:
        """Say how a node is; it may report before its stream is open."""
        if self._health.get(identity) != health:
            self._health[identity] = health
            self._touch(identity)

    def health(self, identity: Identity) -> Health:
        """Return what a node reported, to this controller or another."""
        known = self._health.get(identity)
        return known or read_health(self._mirror.key(keys.presence(identity.network, identity.node_id)))

    def _touch(self, identity: Identity) -> None:
        self._changed.add(identity)
        self._wake.set()

    async def keep_written(self) -> NoReturn:
        """Write what changes; when the store can't, say it again later."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed:
                batch = [self._changed.pop() for _ in range(min(MAX_OPS, len(self._changed)))]
                try:
                    await self._write(batch)
                except StoreUnavailableError as error:
                    self._changed |= set(batch)
                    await self._wait_for_store(error)
            await asyncio.sleep(_PAUSE)

    async def _wait_for_store(self, error: StoreUnavailableError) -> None:
        _log.warning("presence has to wait", extra={"reason": error.cause})
        await asyncio.sleep(_STORE_PAUSE)

    async def keep_alive(self) -> NoReturn:
        """Renew the lease; after it was lost, say everything again under a new one."""
        while True:
            await asyncio.sleep(LEASE_TTL / 3)
            if self._lease:
                try:
                    await self._store.keepalive(self._lease)
                except LeaseNotFoundError:
                    self._start_again()
                except StoreUnavailableError as error:
                    await self._wait_for_store(error)

    def _start_again(self) -> None:
        _log.warning("the lease of this controller had ended; presence is written again")
        self._lease = 0
        self._changed |= self._online
        self._wake.set()

    async def _write(self, identities: list[Identity]) -> None:
        self._lease = self._lease or await self._store.grant(LEASE_TTL)
        ops = [op for identity in identities if (op := self._op(identity))]
        try:
            result = await self._store.txn([], ops)
            await self._mirror.reached(result.revision)
        except LeaseNotFoundError:
            self._changed |= set(identities)
            self._start_again()

    def _op(self, identity: Identity) -> Op | None:
        key = keys.presence(identity.network, identity.node_id)
        if identity in self._online:
            value = {"controller": self._id, **asdict(self._health.get(identity, Health()))}
            return Put(key, json.dumps(value, separators=(",", ":")).encode(), self._lease)
        kv = self._mirror.key(key)
        # A node that went over to another controller is that one's to speak of.
        return Delete(key) if kv and kv.lease == self._lease else None

    async def end(self) -> None:
        """Take back everything at once; without the store, the lease ends by itself."""
        if self._lease:
            with suppress(StoreUnavailableError):
                await self._store.revoke(self._lease)
