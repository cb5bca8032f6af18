"""Who is connected to this controller, as every controller can read it: under this one's lease.

Agents come and go in crowds, so what changed is written in batches; what is written is whatever is true
by then.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from overmesh.controller.fleet.lease import Lease
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import MAX_OPS, Delete, KeyValue, Op, Put, unchanged
from overmesh.controller.trust import Identity
from overmesh.errors import LeaseNotFoundError, StoreUnavailableError

# Seconds between two rounds of writing, and before another try when the store is gone.
PAUSE = 0.2
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


@dataclass(frozen=True, slots=True)
class Speaker:
    """Which controller a node speaks to, and which run of its agent does."""

    controller: str = ""
    instance: str = ""


def read_speaker(kv: KeyValue | None) -> Speaker:
    """Return what a presence key says of that; nothing as for `read_health`."""
    try:
        value = json.loads(kv.value) if kv else {}
        return Speaker(str(value["controller"]), str(value["instance"]))
    except (ValueError, TypeError, KeyError):
        return Speaker()


class Presence:
    """Keeps what this controller says about its agents true."""

    def __init__(self, mirror: Mirror, lease: Lease) -> None:
        self._mirror = mirror
        self._lease = lease
        self._id = secrets.token_hex(4)
        self._online: dict[Identity, str] = {}
        self._health: dict[Identity, Health] = {}
        self._changed: set[Identity] = set()
        self._wake = asyncio.Event()
        self._elsewhere: list[Callable[[Identity], None]] = []
        lease.on_loss(self._say_again)
        mirror.on_kind("presence", self._told)

    def on_elsewhere(self, listener: Callable[[Identity], None]) -> None:
        """Have `listener(identity)` called when another instance of a node that is here speaks elsewhere."""
        self._elsewhere.append(listener)

    def seen(self, identity: Identity, online: bool, instance: str = "") -> None:
        """Say that a node came or went, and by which instance of its agent it speaks."""
        if online:
            self._online[identity] = instance
        else:
            self._online.pop(identity, None)
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

    def instance(self, network: str, node_id: str) -> str:
        """Return the instance by which a node speaks to some controller, or an empty string."""
        return read_speaker(self._mirror.key(keys.presence(network, node_id))).instance

    def _told(self, network: str, node_id: str) -> None:
        """Notice that a node which is connected here is so at another controller too, as another instance."""
        identity = Identity(network, node_id)
        here = self._online.get(identity)
        # What is still to be written here comes after the other's word: then that one is told instead.
        if not here or identity in self._changed:
            return
        speaker = read_speaker(self._mirror.key(keys.presence(network, node_id)))
        if speaker.controller != self._id and speaker.instance not in ("", here):
            for listener in self._elsewhere:
                listener(identity)

    def _touch(self, identity: Identity) -> None:
        self._changed.add(identity)
        self._wake.set()

    async def keep_written(self) -> NoReturn:
        """Write what changes; when the store can't, say it again later."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            while changed:
                batch = [changed.pop() for _ in range(min(MAX_OPS, len(changed)))]
                try:
                    await self._write(batch)
                except StoreUnavailableError as error:
                    changed |= set(batch)
                    await self._wait_for_store(error)
            await asyncio.sleep(PAUSE)

    async def _wait_for_store(self, error: StoreUnavailableError) -> None:
        _log.warning("presence has to wait", extra={"reason": error.cause})
        await asyncio.sleep(_STORE_PAUSE)

    def _say_again(self) -> None:
        self._changed |= self._online.keys()
        self._wake.set()

    async def _write(self, identities: list[Identity]) -> None:
        lease = await self._lease.held()
        try:
            await self._mirror.change(lambda: self._plan(identities, lease))
        except LeaseNotFoundError:
            self._changed |= set(identities)
            self._lease.lost(lease)

    def _plan(self, identities: list[Identity], lease: int) -> Change | None:
        ops = [op for identity in identities if (op := self._op(identity, lease))]
        # A node that went over to another controller meanwhile is that one's to speak of.
        ours = [self._mirror.key(op.key) for op in ops if isinstance(op, Delete)]
        return Change([unchanged(kv) for kv in ours if kv], ops) if ops else None

    def _op(self, identity: Identity, lease: int) -> Op | None:
        key = keys.presence(identity.network, identity.node_id)
        if identity in self._online:
            speaker = Speaker(self._id, self._online[identity])
            value = {**asdict(speaker), **asdict(self._health.get(identity, Health()))}
            return Put(key, json.dumps(value, separators=(",", ":")).encode(), lease)
        kv = self._mirror.key(key)
        return Delete(key) if kv and kv.lease == lease else None
