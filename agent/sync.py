"""Follows the controller: Watch for the map, Report for what it does not say of this host.

    connect -> Hello -> receive -> apply -> keep on disk -> Ack, and again
       ^-------- the next controller <-- the stream ended, went silent, or astray
       ^-------- a better one, once it answers <-- there is one

A controller that is away changes nothing on this host: the last map stays in force, and the next one
goes on from its revision. When none answers the agent waits, longer each time (full jitter).
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from random import SystemRandom
from typing import Any

import grpc
import grpc.aio

from overmesh import __version__, trace
from overmesh.agent import calls, controllers
from overmesh.agent.calls import CALL_TIMEOUT, translated
from overmesh.agent.contact import Contact
from overmesh.agent.pace import AckLimiter, Backoff
from overmesh.agent.peermap import Outcome, Replica
from overmesh.agent.reporting import Facts, Reporting
from overmesh.agent.state import Identity, StateDir
from overmesh.errors import (
    CloneError,
    InvalidError,
    MeshError,
    OvermeshError,
    RemovedError,
    ReplacedError,
    StateError,
    UnreachableError,
)
from overmesh.model import Problem
from overmesh.proto import mesh_pb2, mesh_pb2_grpc
from overmesh.proto.codec import problem_messages

# Three of the controller's heartbeats: a stream that is silent for longer is dead, whatever TCP says.
SILENCE = 30.0
# As many heartbeats may tell of a newer map before its delta counts as lost.
PATIENCE = 3

# A node that was removed asks rarely whether it is a member again.
REMOVED_DELAY = 60.0
# A controller that is new in the map has no agents: they look so often whether there is a better one.
LOOK_EVERY = 60.0
SETTLED = 10.0
# A stream that was not taken over for so long ends a quarrel with a copy of this host.
UNDISPUTED = 60.0

_HANDSHAKE = re.compile("[Hh]andshake|Socket closed|certificate")

_RANDOM = SystemRandom()

log = logging.getLogger("overmesh.agent.sync")


class _MovesOver(Exception):  # noqa: N818
    """The stream is to go on over a new connection."""


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
        self.host_id = host_id
        # Of this run of the agent: a machine id may be one that a copy of this machine has too. A copy that
        # is restarted says who it was, or it would take the node over once more.
        mine = identity.membership
        self.instance = mine.quarantined or secrets.token_hex(8)
        self._replaced = False
        # Longer each time: two that are alike do not storm.
        self._quarrel = Backoff()
        self._replica = replica
        self._state = state
        self._apply = apply
        # One thread: a write whose stream has broken is finished before the next one begins.
        self._disk = ThreadPoolExecutor(1)
        self._limiter = AckLimiter()
        self._backoff = Backoff()
        self._ack = mesh_pb2.Ack()
        self._ack_due = asyncio.Event()
        self._reporting = Reporting(replica)
        self._report_due = asyncio.Event()
        self._accepted = asyncio.Event()
        self._renewed = asyncio.Event()
        # Set once the controller of this attempt has given us its map.
        self._served = asyncio.Event()
        self._opened: tuple[str, grpc.aio.Channel] | None = None
        self.contact = Contact(copied=mine.host_id not in ("", host_id) or mine.quarantined != "")

    def report(self, facts: Facts) -> None:
        """Tell the controller, now and whenever it is reached again."""
        if self._reporting.note(facts):
            self._report_due.set()
            self._ack_due.set()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What no controller wants to know of this host."""
        return self._reporting.problems

    async def run(self) -> None:
        """Follow one controller after another until cancelled."""
        tried: set[str] = set()
        while True:
            address = self._opened[0] if self._opened else self._next(tried)
            if not address:
                await self._rest(self._backoff.delay())
                self._backoff.grow()
                tried.clear()
                continue
            lost = await self._attempt(address)
            await self._rest(self._pause(lost))
            if self._served.is_set():
                tried.clear()
            # Who was replaced can say so there.
            if lost and not isinstance(lost, ReplacedError):
                tried.add(address)

    async def _rest(self, seconds: float) -> None:
        """Wait, but not with a new identity: it may be let in where the last one was not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._renewed.wait()

    def _pause(self, lost: OvermeshError | None) -> float:
        """Return how long to wait before the next controller is asked."""
        if self.contact.removed:
            return REMOVED_DELAY
        if isinstance(lost, ReplacedError):
            delay = self._quarrel.delay()
            self._quarrel.grow()
            return delay
        if self._served.is_set() and isinstance(lost, UnreachableError):
            # It served others too, and all of them are looking for another one now.
            return _RANDOM.random() * controllers.spread(self._replica.members)
        return 0.0

    def _next(self, tried: Set[str]) -> str:
        """Return the address to try, or an empty string when all were."""
        return next((address for address in self.controllers if address not in tried), "")

    @property
    def controllers(self) -> Sequence[str]:
        """Where this host can find a controller, in the order in which it tries them."""
        mine = self.identity.membership
        return controllers.targets(mine.node_id, self._replica.controllers, mine.controllers)

    async def _attempt(self, address: str) -> OvermeshError | None:
        """Follow one controller for as long as it goes; return what ended it, or None for a better one."""
        self.contact.address = address
        self._accepted.clear()
        self._renewed.clear()
        self._served.clear()
        self._reporting.begin()
        error = None
        # A task of its own: a TaskGroup whose task is cancelled, and a child of which then fails, keeps
        # the cancellation to itself (Python 3.11).
        following = asyncio.create_task(self._follow(address))
        try:
            await following
        except* _MovesOver:
            log.info("the stream moves over", extra={"controller": address})
        except* OvermeshError as group:
            error = _first(group)
            if isinstance(error, ReplacedError):
                self._note_replaced()
            if self.contact.connected or error.cause != self.contact.error:
                log.warning("controller lost", extra={"controller": address, "reason": error.cause})
            self.contact.turn(connected=False, error=error.cause)
            rejected = not self._accepted.is_set() and _HANDSHAKE.search(error.cause)
            self.contact.rejected = self.contact.rejected + 1 if rejected else 0
            if isinstance(error, RemovedError):
                await self.removed()
            # Who was replaced keeps quiet too: taken again, it makes its sessions anew, and so gets back what
            # its copy has drawn to itself.
            if isinstance(error, CloneError | ReplacedError):
                self.contact.copied, self.contact.advice = True, error.fix
                await self._apply()
            if isinstance(error, CloneError):
                await self._be_known(quarantined=self.instance)
        if _is_cancelled():
            raise asyncio.CancelledError
        await self._remember()
        return error

    def _note_replaced(self) -> None:
        """Come back as another instance, and say why."""
        if self.contact.connected and time.monotonic() - self.contact.since > UNDISPUTED:
            self._quarrel.reset()
        self._replaced = True
        self.instance = secrets.token_hex(8)

    async def _follow(self, address: str) -> None:
        async with self._channel(address) as open_channel, asyncio.TaskGroup() as tasks:
            stub: Any = mesh_pb2_grpc.MeshStub(open_channel)  # type: ignore[no-untyped-call]
            stream = stub.Watch()
            tasks.create_task(translated(self._receive(stream), address))
            tasks.create_task(translated(self._send_acks(stream), address))
            tasks.create_task(self._send_reports(stub, address))
            tasks.create_task(self._look_for_better(address))
            tasks.create_task(self._move_over())

    async def use(self, identity: Identity) -> None:
        """Connect as this identity from now on; a stream that is open moves over, and goes on where it is.

        Raises:
            StateError: it can't be kept.

        """
        network, node = self._replica.own
        mine = replace(identity.membership, network=network, node=node)
        self._renewed.set()
        await self._become(replace(identity, membership=mine))

    async def _move_over(self) -> None:
        await self._renewed.wait()
        raise _MovesOver

    def _channel(self, address: str) -> grpc.aio.Channel:
        opened, self._opened = self._opened, None
        return opened[1] if opened else calls.channel(self.identity, address)

    # Watch.

    async def _receive(self, stream: Any) -> None:
        revision, digest = self._replica.begin()
        if (self._ack.revision, self._ack.digest) != (revision, digest):
            self._ack = mesh_pb2.Ack(revision=revision, digest=digest)
        hello = mesh_pb2.Hello(
            revision=revision,
            digest=digest,
            host_id=self.host_id,
            version=__version__,
            instance=self.instance,
            replaced=self._replaced,
            health=self._reporting.health,
        )
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
            if outcome in (Outcome.CHANGED, Outcome.CURRENT):
                self._served.set()
            if outcome is Outcome.CHANGED:
                with trace.span("apply", reply.delta.traceparent, revision=self._replica.revision):
                    await self._take_over()
            if outcome in (Outcome.CHANGED, Outcome.CURRENT):
                self.contact.confirmed = time.time()
                self._backoff.reset()
                self._replaced = False

    def _alive(self) -> None:
        if not self.contact.connected:
            log.info("controller connected", extra={"controller": self.contact.address})
        self._accepted.set()
        self.contact.removed = False
        self.contact.rejected = 0
        self.contact.turn(connected=True)

    async def _taken(self) -> None:
        """Be the node on this machine from now on: the controller knows of no other."""
        self.contact.copied, self.contact.advice = False, ""
        await self._be_known(host_id=self.host_id, quarantined="")
        await self._apply()

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
            traceparent=trace.current(),
            problems=problem_messages(problems),
        )
        self._ack_due.set()
        self._report_due.set()

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
        await self._become(replace(self.identity, membership=mine, roots=self._replica.roots))

    async def _on_disk(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    async def _send_acks(self, stream: Any) -> None:
        self._ack_due.clear()
        while True:
            await self._ack_due.wait()
            await asyncio.sleep(self._limiter.take(time.monotonic()))
            self._ack_due.clear()
            ack = mesh_pb2.Ack(health=self._reporting.health)
            ack.MergeFrom(self._ack)
            await stream.write(mesh_pb2.WatchRequest(ack=ack))

    async def removed(self) -> None:
        """Stop using the map of a network that this host is no member of any more."""
        if not self.contact.removed:
            log.error("this node was removed from its network")
        self.contact.removed = True
        self._replica.clear()
        await self._apply()
        await self._keep()

    # Which controller.

    async def _look_for_better(self, here: str) -> None:
        """End the stream once another controller comes first for this node, and answers."""
        await asyncio.sleep(SETTLED + _RANDOM.random() * LOOK_EVERY)
        while True:
            await self._remember()
            mine = self.identity.membership.node_id
            if there := controllers.better(mine, self._replica.controllers, here):
                self._opened = await calls.opened(self.identity, there.mesh)
            if self._opened:
                raise _MovesOver
            await asyncio.sleep(LOOK_EVERY)

    async def _remember(self) -> None:
        """Keep on disk where controllers are, so that this host starts with any of them alive."""
        await self._be_known(controllers=tuple(self.controllers[: controllers.REMEMBERED]))

    async def _become(self, identity: Identity) -> None:
        """Be this from now on, and after a restart."""
        before, self.identity = self.identity, identity
        await self._on_disk(self._state.change_identity, before, identity)

    async def _be_known(self, **changed: Any) -> None:
        """Change this of the membership; when the disk does not take it, until a restart."""
        mine = replace(self.identity.membership, **changed)
        if mine == self.identity.membership:
            return
        try:
            await self._become(replace(self.identity, membership=mine))
        except StateError as error:
            log.warning("who this host is can't be kept", extra={"reason": error.cause})

    # Report.

    async def _send_reports(self, stub: Any, address: str) -> None:
        # Not before the map is here, which says what there is to report. A copy of this host gets none: it
        # must not have the node's packets sent to itself.
        await self._served.wait()
        while True:
            self._report_due.clear()
            if request := self._reporting.due(self.host_id, self.instance, time.time()):
                await self._send(request, stub, address)
            await self._report_due.wait()

    async def _send(self, request: mesh_pb2.ReportRequest, stub: Any, address: str) -> None:
        try:
            await translated(stub.Report(request, timeout=CALL_TIMEOUT), address)
        except InvalidError as error:
            log.warning("the controller refuses this host's facts", extra={"reason": error.cause})
            self._reporting.answered(error.cause)
        else:
            self._reporting.answered()


async def _within(seconds: float, read: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await read
    except TimeoutError:
        raise UnreachableError(f"the controller was silent for {seconds:.0f} s") from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(group: BaseExceptionGroup[OvermeshError]) -> OvermeshError:
    """Return what matters most of several errors: that this node was removed or has a copy, else any."""
    errors = [error for error in group.exceptions if isinstance(error, OvermeshError)]
    for kind in (RemovedError, CloneError, ReplacedError):
        if telling := next((error for error in errors if isinstance(error, kind)), None):
            return telling
    return errors[0]
