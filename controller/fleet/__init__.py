"""All controllers together: what each knows of its own agents, asked for when somebody wants to know.

    meshctl ► AdminService ► Fleet ─┬─ this controller's agents
                                    └─ every other one in the map ► its ControllersService ► its agents

Nothing of this is in the store. All are asked at once and have a short time; who does not answer is named.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from overmesh import __version__, rpc
from overmesh.controller.agents import Agents, Sighting
from overmesh.controller.fleet.contact import Contact
from overmesh.controller.fleet.controllers import called, known
from overmesh.controller.fleet.convergence import Convergence
from overmesh.controller.mirror import Mirror
from overmesh.controller.trust import MeshRoot, check_controller
from overmesh.errors import OvermeshError, UnreachableError
from overmesh.model import Controller
from overmesh.proto import admin_pb2, controllers_pb2, controllers_pb2_grpc
from overmesh.proto.codec import problem_messages, problem_values

# Seconds that another controller has to answer.
ANSWER = 2.0
# `wait` asks again so often: controllers come and go meanwhile.
_ROUND = 1.0

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A controller that is in the map and did not answer, and why."""

    controller: Controller
    reason: str

    @property
    def name(self) -> str:
        """What to call it."""
        return called(self.controller)


class Here:
    """What this controller knows of its own agents.

    Args:
        mirror: of the store.
        agents: that are connected here.
        contact: with the store.
        name: of this controller.
        clock: unix seconds.

    """

    def __init__(
        self,
        mirror: Mirror,
        agents: Agents,
        contact: Contact,
        name: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._mirror = mirror
        self._agents = agents
        self._contact = contact
        self._since = int(clock())
        self._convergence = Convergence(mirror, agents, name)

    async def describe(self) -> controllers_pb2.DescribeReply:
        """Return what there is to say of this controller itself."""
        agents = sum(self._agents.count(view.name) for view in self._mirror.networks)
        return controllers_pb2.DescribeReply(
            version=__version__,
            revision=self._mirror.revision,
            agents=agents,
            since=self._since,
            problems=problem_messages(await self._contact.current()),
        )

    def sightings(self, network: str, node_id: str = "") -> Mapping[str, Sighting]:
        """Return what is known here of a network's agents, or of one."""
        wanted = [node_id] if node_id else self._mirror.held("nodes", network)
        found = ((wanted_id, self._agents.sighting(network, wanted_id)) for wanted_id in wanted)
        return {wanted_id: sighting for wanted_id, sighting in found if sighting.last_seen}

    async def wait(self, request: admin_pb2.WaitRequest) -> admin_pb2.WaitReply:
        """See Convergence.wait."""
        return await self._convergence.wait(request.network, request.revision, request.timeout_ms / 1000)


class ControllersService(controllers_pb2_grpc.ControllersServicer):
    """Answers other controllers; nodes are refused."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def Describe(  # noqa: N802
        self, _request: controllers_pb2.DescribeRequest, context: Context
    ) -> controllers_pb2.DescribeReply:
        """Say how this controller is."""
        check_controller(context.auth_context())
        return await self._here.describe()

    async def Sightings(  # noqa: N802
        self, request: controllers_pb2.SightingsRequest, context: Context
    ) -> controllers_pb2.SightingsReply:
        """Say which agents are, or were, connected here."""
        check_controller(context.auth_context())
        found = self._here.sightings(request.network, request.node_id)
        return controllers_pb2.SightingsReply(sightings=[_message(*pair) for pair in found.items()])

    async def Wait(self, request: admin_pb2.WaitRequest, context: Context) -> admin_pb2.WaitReply:  # noqa: N802
        """Wait for the agents that are connected here."""
        check_controller(context.auth_context())
        return await self._here.wait(request)


class Fleet:
    """Asks all controllers.

    Args:
        mirror: of the store; its map names them.
        root: that says to the others that this is a controller.
        own: this controller's record.
        here: what it knows itself.

    """

    def __init__(self, mirror: Mirror, root: MeshRoot, own: Controller, here: Here) -> None:
        self._mirror = mirror
        self._root = root
        self._own = own
        self._here = here

    async def controllers(self) -> Sequence[admin_pb2.Controller]:
        """Return all controllers that are in the map, and how they are."""
        request = controllers_pb2.DescribeRequest()
        answers, silent = await self._ask_others(lambda stub: stub.Describe(request, timeout=ANSWER))
        here = _controller_message(self._own, await self._here.describe(), here=True)
        there = [_controller_message(controller, answer) for controller, answer in answers]
        lost = [_controller_message(one.controller, unanswered=one.reason) for one in silent]
        return sorted([here, *there, *lost], key=lambda message: message.id)

    async def sightings(
        self, network: str, node_id: str = ""
    ) -> tuple[Mapping[str, Sighting], Sequence[Unanswered]]:
        """Return the latest that any controller knows of a network's agents, or of one; who kept silent."""
        request = controllers_pb2.SightingsRequest(network=network, node_id=node_id)
        answers, silent = await self._ask_others(lambda stub: stub.Sightings(request, timeout=ANSWER))
        found = dict(self._here.sightings(network, node_id))
        for _, answer in answers:
            for message in answer.sightings:
                found[message.node_id] = _latest(_sighting(message), found.get(message.node_id))
        return found, silent

    async def wait(self, network: str, revision: int, seconds: float) -> admin_pb2.WaitReply:
        """Return when every agent of every controller holds the map as of a revision, or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            reply = await self._wait_a_while(network, revision, max(0.0, min(left, _ROUND)))
            if reply.converged or left <= _ROUND:
                return reply
            await asyncio.sleep(min(_ROUND / 10, left))

    async def _wait_a_while(self, network: str, revision: int, seconds: float) -> admin_pb2.WaitReply:
        request = admin_pb2.WaitRequest(network=network, revision=revision, timeout_ms=int(seconds * 1000))
        here, (answers, silent) = await asyncio.gather(
            self._here.wait(request),
            self._ask_others(lambda stub: stub.Wait(request, timeout=seconds + ANSWER)),
        )
        replies = [here, *(reply for _, reply in answers)]
        lost = [admin_pb2.Behind(name=one.name, reason=one.reason) for one in silent]
        return admin_pb2.WaitReply(
            converged=not silent and all(reply.converged for reply in replies),
            revision=revision,
            agents=sum(reply.agents for reply in replies),
            behind=[*(behind for reply in replies for behind in reply.behind), *lost],
        )

    # Asking.

    async def _ask_others(
        self, question: Callable[[Any], Awaitable[T]]
    ) -> tuple[Sequence[tuple[Controller, T]], Sequence[Unanswered]]:
        """Ask all other controllers at once; return the answers, and who gave none."""
        others = [one for one in known(self._mirror) if one.id != self._own.id]
        answers = await asyncio.gather(*(self._ask(other, question) for other in others))
        silent = [answer for answer in answers if isinstance(answer, Unanswered)]
        return [answer for answer in answers if not isinstance(answer, Unanswered)], silent

    async def _ask(
        self, controller: Controller, question: Callable[[Any], Awaitable[T]]
    ) -> tuple[Controller, T] | Unanswered:
        try:
            async with self._connected(controller) as channel:
                stub = controllers_pb2_grpc.ControllersStub(channel)  # type: ignore[no-untyped-call]
                return controller, await question(stub)
        except grpc.aio.AioRpcError as error:
            return Unanswered(controller, rpc.raised(error, "it").cause)
        except OvermeshError as error:
            return Unanswered(controller, error.cause)

    @asynccontextmanager
    async def _connected(self, controller: Controller) -> AsyncIterator[grpc.aio.Channel]:
        """Give a channel to whichever of its addresses answers first."""
        me = self._root.issue_controller(self._own.id)
        credentials = grpc.ssl_channel_credentials(self._mirror.roots.pem, me.key, me.chain)
        options = [("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME), *rpc.MESSAGE_LIMIT]
        channels = [grpc.aio.secure_channel(target, credentials, options) for target in controller.mesh]
        try:
            yield await _first_ready(channels)
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))


async def _first_ready(channels: Iterable[grpc.aio.Channel]) -> grpc.aio.Channel:
    waiting = {asyncio.ensure_future(channel.channel_ready()): channel for channel in channels}
    try:
        done, _ = await asyncio.wait(waiting, timeout=ANSWER, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    if not done:
        raise UnreachableError(f"no connection within {ANSWER:.0f} s")
    return waiting[done.pop()]


# Messages.


def _latest(one: Sighting, other: Sighting | None) -> Sighting:
    return max((one, other or Sighting()), key=lambda sighting: (sighting.online, sighting.last_seen))


def _message(node_id: str, sighting: Sighting) -> controllers_pb2.Sighting:
    return controllers_pb2.Sighting(
        node_id=node_id,
        online=sighting.online,
        last_seen=sighting.last_seen,
        acked_revision=sighting.acked,
        in_step=sighting.in_step,
        version=sighting.version,
        host_id=sighting.host_id,
        problems=problem_messages(sighting.problems),
    )


def _sighting(message: controllers_pb2.Sighting) -> Sighting:
    return Sighting(
        online=message.online,
        last_seen=message.last_seen,
        acked=message.acked_revision,
        in_step=message.in_step,
        version=message.version,
        problems=problem_values(message.problems),
        host_id=message.host_id,
    )


def _controller_message(
    controller: Controller,
    said: controllers_pb2.DescribeReply | None = None,
    *,
    here: bool = False,
    unanswered: str = "",
) -> admin_pb2.Controller:
    message = admin_pb2.Controller(
        id=controller.id, mesh=controller.mesh, join=controller.join, here=here, unanswered=unanswered
    )
    if said:
        message.agents, message.revision = said.agents, said.revision
        message.since, message.version = said.since, said.version
        message.problems.extend(said.problems)
    return message
