"""Follows the controller: Watch for the map, Report for what is true here.

    connect -> Hello -> receive -> apply -> keep on disk -> Ack, and again
       ^-------- wait, longer each time (full jitter) <-- the stream ended, went silent, or astray

A controller that is away changes nothing on this host: the last map stays in force.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import Any

import grpc
import grpc.aio

from overmesh import __version__, rpc
from overmesh.agent.peermap import Outcome, Replica
from overmesh.agent.state import Identity, StateDir
from overmesh.errors import (
    CloneError,
    InvalidError,
    MeshError,
    OvermeshError,
    RemovedError,
    StateError,
    UnreachableError,
)
from overmesh.model import Endpoint, Problem
from overmesh.proto import mesh_pb2, mesh_pb2_grpc
from overmesh.proto.codec import endpoint_message, problem_messages

# Three of the controller's heartbeats: a stream that is silent for longer is dead, whatever TCP says.
SILENCE = 30.0
# As many heartbeats may tell of a newer map before its delta counts as lost.
PATIENCE = 3
CALL_TIMEOUT = 10.0

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
# A node that was removed asks rarely whether it is a member again.
REMOVED_DELAY = 60.0

# So many attempts in a row that end in the handshake are no accident.
_REJECTIONS = 3
_HANDSHAKE = re.compile("CERTIFICATE|[Hh]andshake|Socket closed|certificate")

_RANDOM = SystemRandom()

log = logging.getLogger("overmesh.agent.sync")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host reports of itself. lanes: those that its fastpath has, not those that were asked for."""

    endpoints: tuple[Endpoint, ...]
    backend: str
    backend_reason: str
    mtu: int
    lanes: int


@dataclass(slots=True)
class Contact:
    """How this host stands with its controllers. since: monotonic; confirmed: unix seconds, 0 never.

    copied: another machine is, or was, this node: this one must not draw the node's packets to itself
    before a controller has taken it for the node. rejected: how many attempts in a row ended where
    certificates are looked at.
    """

    address: str = ""
    connected: bool = False
    error: str = ""
    since: float = field(default_factory=time.monotonic)
    confirmed: float = 0.0
    removed: bool = False
    copied: bool = False
    rejected: int = 0

    @property
    def untrusted(self) -> bool:
        """Whether controllers and this host seem not to accept each other's certificates."""
        return self.rejected >= _REJECTIONS

    def turn(self, *, connected: bool, error: str = "") -> None:
        """Note a change for better or worse."""
        if connected != self.connected:
            self.since = time.monotonic()
        self.connected, self.error = connected, error


class _MovesOver(Exception):  # noqa: N818
    """The stream is to go on over a new connection."""


class AckLimiter:
    """At most one ack a second under load, a few at once after a quiet time (a token bucket)."""

    def __init__(self, rate: float = 1.0, burst: int = 5) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take the right to send one, and return how many seconds from now it may be sent."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


class Backoff:
    """Full jitter: a random time up to a limit that doubles (AWS, "Exponential Backoff And Jitter")."""

    def __init__(self, random: Callable[[], float] = _RANDOM.random) -> None:
        self._random = random
        self._failures = 0

    def delay(self) -> float:
        """Return how many seconds to wait before the next attempt."""
        limit: float = min(LONGEST_DELAY, FIRST_DELAY * 2**self._failures)
        return limit * self._random()

    def grow(self) -> None:
        """Wait longer from now on: every controller was tried in vain."""
        self._failures = min(self._failures + 1, 16)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._failures = 0


class Sync:
    """The agent's side of the peer map stream.

    Args:
        identity: who this host is; its certificate is what the controller goes by.
        host_id: tells this machine from a copy of it.
        replica: what is received goes in here.
        state: where the map is kept.
        apply: makes the host match the replica; returns what could not be done.

    """

    def __init__(
        self,
        identity: Identity,
        host_id: str,
        replica: Replica,
        state: StateDir,
        apply: Callable[[], Awaitable[Sequence[Problem]]],
    ) -> None:
        self.identity = identity
        self._host_id = host_id
        self._replica = replica
        self._state = state
        self._apply = apply
        # One thread: a write whose stream has broken is finished before the next one begins.
        self._disk = ThreadPoolExecutor(1)
        self._limiter = AckLimiter()
        self._backoff = Backoff()
        self._ack: mesh_pb2.Ack | None = None
        self._ack_due = asyncio.Event()
        self._facts: Facts | None = None
        self._facts_changed = asyncio.Event()
        self._accepted = asyncio.Event()
        self._renewed = asyncio.Event()
        self.contact = Contact(copied=identity.membership.host_id not in ("", host_id))
        self.problems: tuple[Problem, ...] = ()

    def report(self, facts: Facts) -> None:
        """Tell the controller, now and whenever it is reached again."""
        if facts != self._facts:
            self._facts = facts
            self._facts_changed.set()

    async def run(self) -> None:
        """Follow one controller after another until cancelled."""
        while True:
            for address in self.identity.membership.controllers:
                pause = await self._attempt(address)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._renewed.wait(), pause)
            self._backoff.grow()

    async def _attempt(self, address: str) -> float:
        """Follow one controller for as long as it goes; return how long to wait before the next attempt."""
        self.contact.address = address
        moves_over = False
        self._renewed.clear()
        # A task of its own: a TaskGroup whose task is cancelled, and a child of which then fails, keeps
        # the cancellation to itself (Python 3.11).
        following = asyncio.create_task(self._follow(address))
        try:
            await following
        except* _MovesOver:
            moves_over = True
        except* OvermeshError as group:
            error = _first(group)
            if self.contact.connected or error.cause != self.contact.error:
                log.warning("controller lost", extra={"controller": address, "reason": error.cause})
            self.contact.turn(connected=False, error=error.cause)
            rejected = not self._accepted.is_set() and _HANDSHAKE.search(error.cause)
            self.contact.rejected = self.contact.rejected + 1 if rejected else 0
            if isinstance(error, RemovedError):
                await self.removed()
            if isinstance(error, CloneError):
                self.contact.copied = True
                await self._apply()
        if _is_cancelled():
            raise asyncio.CancelledError
        if moves_over:
            return 0.0
        return REMOVED_DELAY if self.contact.removed else self._backoff.delay()

    async def _follow(self, address: str) -> None:
        self._accepted.clear()
        async with channel(self.identity, address) as open_channel, asyncio.TaskGroup() as tasks:
            stub: Any = mesh_pb2_grpc.MeshStub(open_channel)  # type: ignore[no-untyped-call]
            stream = stub.Watch()
            tasks.create_task(_translated(self._receive(stream), address))
            tasks.create_task(_translated(self._send_acks(stream), address))
            tasks.create_task(self._send_facts(stub, address))
            tasks.create_task(self._move_over())

    async def use(self, identity: Identity) -> None:
        """Connect as this identity from now on; a stream that is open moves over, and goes on where it is.

        Raises:
            StateError: it can't be kept.

        """
        network, node = self._replica.own
        mine = replace(identity.membership, network=network, node=node)
        before, self.identity = self.identity, replace(identity, membership=mine)
        self._renewed.set()
        await self._on_disk(self._state.change_identity, before, self.identity)

    async def _move_over(self) -> None:
        await self._renewed.wait()
        raise _MovesOver

    # Watch.

    async def _receive(self, stream: Any) -> None:
        revision, digest = self._replica.begin()
        hello = mesh_pb2.Hello(revision=revision, digest=digest, host_id=self._host_id, version=__version__)
        await stream.write(mesh_pb2.WatchRequest(hello=hello))
        behind = 0
        while True:
            reply = await _within(SILENCE, stream.read())
            if reply is grpc.aio.EOF:
                raise UnreachableError("the controller ended the stream")
            self._alive()
            if self.contact.copied:
                await self._taken()
            outcome = self._replica.receive(reply)
            behind = behind + 1 if outcome is Outcome.BEHIND else 0
            if outcome is Outcome.RESYNC or behind > PATIENCE:
                raise MeshError(f"the map at revision {self._replica.revision} can't be brought up to date")
            if outcome is Outcome.CHANGED:
                await self._take_over()
            if outcome in (Outcome.CHANGED, Outcome.CURRENT):
                self.contact.confirmed = time.time()
                self._backoff.reset()

    def _alive(self) -> None:
        if not self.contact.connected:
            log.info("controller connected", extra={"controller": self.contact.address})
        self._accepted.set()
        self.contact.removed = False
        self.contact.rejected = 0
        self.contact.turn(connected=True)

    async def _taken(self) -> None:
        """Be the node on this machine from now on: the controller knows of no other."""
        self.contact.copied = False
        await self._apply()
        mine = replace(self.identity.membership, host_id=self._host_id)
        self.identity = replace(self.identity, membership=mine)
        try:
            self._state.save_identity(self.identity)
        except StateError as error:
            log.warning("what tells this machine from a copy can't be kept", extra={"reason": error.cause})

    async def _take_over(self) -> None:
        """Apply the map, keep it, and have it acked: only what is in force and safe counts as held."""
        began = time.monotonic()
        problems = [*await self._apply()]
        elapsed = time.monotonic() - began
        problems += await self._keep()
        self._ack = mesh_pb2.Ack(
            revision=self._replica.revision,
            digest=self._replica.digest.to_bytes(),
            apply_us=round(elapsed * 1e6),
            problems=problem_messages(problems),
        )
        self._ack_due.set()

    async def _keep(self) -> list[Problem]:
        self._replica.prune(time.time())
        try:
            # Before the map, which may hold what only the new roots verify.
            await self._keep_roots()
            await self._on_disk(self._state.save_map, self._replica.held())
        except StateError as error:
            log.warning("the map can't be kept", extra={"reason": error.cause})
            return [Problem("state", error.cause)]
        return []

    async def _keep_roots(self) -> None:
        if self._replica.roots == self.identity.roots:
            return
        log.warning("other mesh roots are trusted", extra={"roots": list(self._replica.roots.fingerprints)})
        network, node = self._replica.own
        mine = replace(self.identity.membership, network=network, node=node)
        before = self.identity
        self.identity = replace(before, membership=mine, roots=self._replica.roots)
        await self._on_disk(self._state.change_identity, before, self.identity)

    async def _on_disk(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    async def _send_acks(self, stream: Any) -> None:
        self._ack_due.clear()
        while True:
            await self._ack_due.wait()
            await asyncio.sleep(self._limiter.take(time.monotonic()))
            self._ack_due.clear()
            await stream.write(mesh_pb2.WatchRequest(ack=self._ack))

    async def removed(self) -> None:
        """Stop using the map of a network that this host is no member of any more."""
        if not self.contact.removed:
            log.error("this node was removed from its network")
        self.contact.removed = True
        self._replica.clear()
        await self._apply()
        await self._keep()

    # Report.

    async def _send_facts(self, stub: Any, address: str) -> None:
        # Not before the stream is accepted: a clone must not have the node's packets sent to itself.
        await self._accepted.wait()
        while True:
            self._facts_changed.clear()
            if self._facts is not None:
                await self._send(self._facts, stub, address)
            await self._facts_changed.wait()

    async def _send(self, facts: Facts, stub: Any, address: str) -> None:
        request = mesh_pb2.ReportRequest(
            endpoints=[endpoint_message(endpoint) for endpoint in facts.endpoints],
            backend=facts.backend,
            backend_reason=facts.backend_reason,
            mtu=facts.mtu,
            lanes=facts.lanes,
            host_id=self._host_id,
        )
        try:
            await _translated(stub.Report(request, timeout=CALL_TIMEOUT), address)
        except InvalidError as error:
            # The map is no worse for it: the stream stays.
            log.warning("the controller refuses this host's facts", extra={"reason": error.cause})
            self.problems = (Problem("report", error.cause),)
        else:
            self.problems = ()


async def leave(identity: Identity) -> None:
    """Tell a controller that this node leaves.

    Raises:
        MeshError: none could be told.

    """
    failure: OvermeshError = UnreachableError("no controller is known")
    for address in identity.membership.controllers:
        try:
            async with channel(identity, address) as open_channel:
                stub: Any = mesh_pb2_grpc.MeshStub(open_channel)  # type: ignore[no-untyped-call]
                await _translated(stub.Leave(mesh_pb2.LeaveRequest(), timeout=CALL_TIMEOUT), address)
        except RemovedError:
            return
        except OvermeshError as error:
            failure = error
        else:
            return
    raise failure


def channel(identity: Identity, address: str) -> grpc.aio.Channel:
    """Return a channel to a controller's mesh port, for use in a `with`."""
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(*identity.tls_pem),
        options=[
            ("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME),
            # A pool of its own, or a new channel would wait out the backoff of the last one.
            ("grpc.use_local_subchannel_pool", 1),
            *rpc.KEEPALIVE,
            *rpc.MESSAGE_LIMIT,
        ],
    )


async def _translated(call: Awaitable[None], address: str) -> None:
    """Await a call; what gRPC raises comes out in the words of overmesh/errors.py."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        raise rpc.raised(error, f"controller {address}") from None
    except asyncio.InvalidStateError:  # a write to a stream that has just ended
        raise UnreachableError(f"controller {address} ended the stream") from None


async def _within(seconds: float, read: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(read, seconds)
    except TimeoutError:
        raise UnreachableError(f"the controller was silent for {seconds:.0f} s") from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(group: BaseExceptionGroup[OvermeshError]) -> OvermeshError:
    """Return what matters most of several errors: that this node was removed, else any."""
    errors = [error for error in group.exceptions if isinstance(error, OvermeshError)]
    return next((error for error in errors if isinstance(error, RemovedError)), errors[0])
