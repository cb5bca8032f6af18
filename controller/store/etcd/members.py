"""etcd's members: one is in use until it fails, then the next.

One channel for each, so that names, certificates and failures are each member's own. Before a request
is sent its channel is ready; what fails later may have happened.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from overmesh.controller.store.etcd.failures import (
    explained,
    is_passing,
    unanswered,
    unconfirmed,
    unreachable,
    was_not_begun,
)
from overmesh.controller.store.etcd.target import EtcdTarget
from overmesh.controller.store.etcd.tls import Renewable

# Seconds. An election takes one or two, and what was sent meanwhile is never answered.
CONNECT_TIMEOUT = 2.0
CALL_TIMEOUT = 2.5
TXN_TIMEOUT = 3.0
RETRY_LIMIT = 6.0
_PAUSE = 0.05
# A member that knows of no leader refuses at once, instead of letting us wait.
METADATA = (("hasleader", "true"),)

_log = logging.getLogger("overmesh.controller")

_OPTIONS = (
    # Keepalive notices a frozen member only with a ping timeout. etcd allows a ping every 5 s at most.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A watch that has fallen behind gets a thousand revisions in one message.
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


class Member:
    """One member of etcd, by its channel."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.credentials = credentials
        self._channel = (
            grpc.aio.secure_channel(endpoint, credentials, _OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(endpoint, _OPTIONS)
        )
        self.kv: Any = rpc.KVStub(self._channel)
        self.lease: Any = rpc.LeaseStub(self._channel)
        self.watch: Any = rpc.WatchStub(self._channel)

    async def is_ready(self) -> bool:
        """Tell whether it can be talked to, once that is known."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await self._settled() is grpc.ChannelConnectivity.READY
        except TimeoutError:
            return False

    async def _settled(self) -> grpc.ChannelConnectivity:
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
                return state
            await self._channel.wait_for_state_change(state)

    async def complaint(self) -> str:
        """Return gRPC's words for why it can't be talked to."""
        try:
            await self.kv.Range(rpc.RangeRequest(key=b"\0"), timeout=1.0)
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        return ""

    async def close(self) -> None:
        """End it with all its calls."""
        await self._channel.close()


class Members:
    """All members of one etcd.

    Raises:
        ConfigError, StoreUnavailableError: not with these certificates; see tls.py.

    """

    def __init__(self, target: EtcdTarget) -> None:
        self.where = target.url
        self._tls = Renewable(target.files)
        self._members = [Member(endpoint, self._tls.credentials) for endpoint in target.endpoints]
        # Controllers with the same list spread over it.
        self._current = random.randrange(len(self._members))  # noqa: S311

    async def ready(self) -> Member:
        """Return the member in use, or the first after it that can be talked to.

        Raises:
            StoreUnavailableError: none can; nothing was sent.

        """
        for _ in self._members:
            member = self._members[self._current]
            if await member.is_ready():
                return member
            self.leave(member)
        self._tls.check()
        raise unreachable(self.where, await member.complaint())

    def leave(self, member: Member) -> None:
        """Use the next one from now on, if this one is still in use.

        Who comes back to it shows the certificate that is in our files by then.
        """
        if self._tls.look():
            _log.info("etcd is shown a renewed certificate")
        if member not in self._members:
            return
        at = self._members.index(member)
        if at == self._current:
            self._current = (at + 1) % len(self._members)
        if member.credentials is not self._tls.credentials:
            # Whoever still uses the old channel holds it: it ends with the last of them.
            self._members[at] = Member(member.endpoint, self._tls.credentials)

    async def call(self, method: Callable[[Member], Any], request: Any, *, repeatable: bool = True) -> Any:
        """Return a member's answer.

        Args:
            method: which of its methods.
            request: what to ask.
            repeatable: whether doing it twice is as good as once; else it is sent again only after it
                was turned away.

        Raises:
            StoreUnavailableError: no answer; says so when something may have happened.
            StoreError: nothing happened; see failures.py.

        """
        timeout = CALL_TIMEOUT if repeatable else TXN_TIMEOUT
        time = asyncio.get_running_loop().time
        deadline = time() + RETRY_LIMIT
        while True:
            member = await self.ready()
            try:
                return await method(member)(request, timeout=timeout, metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                if not is_passing(error):
                    raise explained(error, self.where) from None
                self.leave(member)
                if not repeatable and not was_not_begun(error):
                    raise unconfirmed(self.where, member.endpoint, error) from None
                if time() > deadline:
                    raise unanswered(self.where, member.endpoint, error) from None
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """End all channels, with all their calls."""
        await asyncio.gather(*(member.close() for member in self._members))
