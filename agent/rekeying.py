"""Changing this host's keys while packets flow.

    prepared   new keys are on disk, and the fastpath takes handshakes for either X25519 key
    announced  this host's record names both: others begin with the new one. The new TLS key is in use
      grace    for those who have not heard of it
    switched   this host, too, begins with the new key
    finished   its record names the new key alone, and the old one is forgotten

What others are told, this host can do already; what it stops doing, they have been told before. Each step
is on disk before the next begins and may be taken again, so a crash leaves a host that works, and an agent
that goes on from there. So does a controller that is away.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh.agent.calls import CALL_TIMEOUT, ask_controllers
from overmesh.agent.joinport import certificate_request
from overmesh.agent.keychange import KeyChange, Stage
from overmesh.agent.peermap import Replica
from overmesh.agent.state import Identity, Keys, StateDir, issued
from overmesh.agent.sync import Sync
from overmesh.errors import (
    FastpathError,
    InvalidError,
    MeshError,
    OvermeshError,
    RecordError,
    RemovedError,
    StateError,
)
from overmesh.model import Node, Problem, node_key
from overmesh.proto import mesh_pb2
from overmesh.proto.signed import verify

DEFAULT_GRACE = 3600
# Every agent that is connected has a change within a second or two.
SHORTEST_GRACE = 10
# Seconds between two attempts at a step that does not succeed.
_RETRY = 5.0

log = logging.getLogger("overmesh.agent.rekeying")


class Rekeying:
    """Owns a change of this host's keys, from its beginning or from where an earlier agent left it.

    Args:
        sync: owner of this host's identity.
        replica: of the map; hears first of what the controllers answer.
        state: where the change is kept.
        apply: gives the fastpath `private_keys`.
        holds: tells whether it has them.
        clock: unix seconds.

    """

    def __init__(
        self,
        sync: Sync,
        replica: Replica,
        state: StateDir,
        apply: Callable[[], Awaitable[object]],
        holds: Callable[[tuple[bytes, bytes]], Awaitable[bool]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sync = sync
        self._replica = replica
        self._state = state
        self._apply = apply
        self._holds = holds
        self._clock = clock
        self._begun = asyncio.Event()
        self._turn = asyncio.Lock()
        self.change = state.key_change()
        self.failure = ""

    @property
    def private_keys(self) -> tuple[bytes, bytes]:
        """What to begin handshakes with, and what to take them for besides; empty: nothing."""
        own = self._sync.identity.keys.noise
        pair = [own, self.change.noise] if self.change else [own]
        if self.change and self.change.stage is Stage.SWITCHED:
            pair.reverse()
        # The same twice: a crash came between the last two writes.
        first, other = (*dict.fromkeys(key.private_bytes_raw() for key in pair), b"")[:2]
        return first, other

    def problems(self, me: Node) -> tuple[Problem, ...]:
        """Return what is wrong with the keys that this host's record names."""
        own = {_public(key) for key in self.private_keys if key}
        if me.public_key in own:
            return ()
        why = "its record names a key that is not here: restore its newest state, or leave and join again"
        return (Problem("keys", why),)

    async def begin(self, grace: int) -> None:
        """Change to fresh keys: return once others know of them; the rest goes by itself.

        Args:
            grace: for how many seconds the old keys stay good besides.

        Raises:
            InvalidError: a grace in which not everybody would hear of it; or the record is not of these keys.
            StateError: a change is under way, or can't be kept.
            OvermeshError: nobody could be told yet; it goes on by itself.

        """
        if grace < SHORTEST_GRACE:
            raise InvalidError(f"a grace of {grace} s is too short", f"give at least {SHORTEST_GRACE}s")
        if self.change:
            raise StateError("this host's keys are being changed already", "see `meshctl status`")
        self._keep(KeyChange.begin(grace))
        self._begun.set()
        try:
            await self.advance()
        except OvermeshError as error:
            fix = "it goes on by itself, see `meshctl status`" if self.change else error.fix
            raise type(error)(error.cause, fix) from None

    async def run(self) -> None:
        """Take whatever step is due, until cancelled."""
        while True:
            self._begun.clear()
            if self.change and not self._sync.contact.removed:
                with suppress(OvermeshError):
                    await self.advance()
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY if self.change else None):
                    await self._begun.wait()

    async def advance(self) -> None:
        """Take the steps that are due.

        Raises:
            OvermeshError: one could not be taken; so far nothing is lost by it.

        """
        async with self._turn:
            try:
                await self._advance()
                self.failure = ""
            except OvermeshError as error:
                if error.cause != self.failure:
                    log.warning("the keys can't be changed yet", extra={"reason": error.cause})
                self.failure = error.cause
                raise

    async def _advance(self) -> None:
        if self.change and self.change.stage is Stage.PREPARED:
            await self._announce(self.change)
        if self.change and self.change.certificate:
            await self._settle(self.change, self.change.certificate)
        if self.change and self.change.stage is Stage.ANNOUNCED and self._clock() >= self.change.until:
            self._keep(replace(self.change, stage=Stage.SWITCHED))
        if self.change and self.change.stage is Stage.SWITCHED:
            await self._finish(self.change)

    # The steps.

    async def _announce(self, change: KeyChange) -> None:
        await self._have_in_force()
        try:
            certificate = await self._ask(change, self._sync.identity.keys.public)
        except InvalidError:
            await self._forget()  # no controller will ever agree, and nobody has been told
            raise
        until = self._clock() + change.grace
        self._keep(replace(change, stage=Stage.ANNOUNCED, until=until, certificate=certificate))
        log.info("this host's keys are changing", extra={"until": int(until)})

    async def _settle(self, change: KeyChange, certificate: x509.Certificate) -> None:
        """Put the new TLS key and its certificate where they belong, and connect with them."""
        mine = self._sync.identity
        await self._sync.use(replace(mine, keys=replace(mine.keys, tls=change.tls), certificate=certificate))
        self._keep(replace(change, certificate=None))

    async def _finish(self, change: KeyChange) -> None:
        await self._have_in_force()
        certificate = await self._ask(change, b"")
        mine = self._sync.identity
        membership = replace(mine.membership, keys_since=int(self._clock()))
        keys = Keys(change.tls, change.noise)
        await self._sync.use(replace(mine, keys=keys, certificate=certificate, membership=membership))
        await self._forget()
        log.info("this host's keys were changed")

    async def _have_in_force(self) -> None:
        """Return once the fastpath goes by the present keys."""
        await self._apply()
        if not await self._holds(self.private_keys):
            raise FastpathError("the fastpath does not have the new keys yet", "see `meshctl status`")

    async def _ask(self, change: KeyChange, previous: bytes) -> x509.Certificate:
        """Have this host's record hold the new key and, unless it is empty, the previous one."""
        mine = self._sync.identity
        request = mesh_pb2.RotateRequest(
            public_key=change.public,
            previous_public_key=previous,
            csr=certificate_request(change.tls, mine.membership.name),
            host_id=self._sync.host_id,
            instance=self._sync.instance,
        )

        async def rotate(stub: Any) -> mesh_pb2.RotateReply:
            reply: mesh_pb2.RotateReply = await stub.Rotate(request, timeout=CALL_TIMEOUT)
            return reply

        try:
            reply = await ask_controllers(mine, self._sync.controllers, rotate)
        except RemovedError:
            await self._sync.removed()
            raise
        certificate = _checked(reply, mine, change, previous)
        network, _ = self._replica.own
        self._replica.renew_own(network, reply.node)
        return certificate

    async def _forget(self) -> None:
        self._state.forget_key_change()
        self.change = None
        await self._apply()

    def _keep(self, change: KeyChange) -> None:
        self._state.save_key_change(change)
        self.change = change


def _checked(
    reply: mesh_pb2.RotateReply, mine: Identity, change: KeyChange, previous: bytes
) -> x509.Certificate:
    """Return the certificate in a controller's answer, once it is certain that all of it is right."""
    try:
        certificate = x509.load_der_x509_certificate(reply.certificate)
        node = verify(node_key(mine.membership.node_id), reply.node, mine.roots)
    except (ValueError, RecordError) as error:
        raise MeshError(f"the controller's answer can't be right: {error}") from None
    named = isinstance(node, Node) and (node.public_key, node.previous_public_key)
    own = replace(mine, keys=replace(mine.keys, tls=change.tls), certificate=certificate)
    if named != (change.public, previous) or not issued(own):
        raise MeshError("the controller's answer can't be right: it is about other keys")
    return certificate


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
