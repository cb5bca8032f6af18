"""Everybody who talks to the controllers, in one process: run by mesh.py on a host of the lab.

    python -m tests.faults.clients SETTINGS.json

joiners, removers    hosts that come and go, each with keys of its own, some with those they had before
token makers         so that there are always fresh ones, for one, a few, or any number
agents               (agents.py) follow the map with the agent's own code, and say where they are

All of them ask another controller when one has no answer, as meshctl and agents do, and write down what
they asked and were answered. SIGUSR1: nobody wants anything new; "quiet" is printed when all have their
answers. SIGTERM: the end.
"""

import asyncio
import json
import random
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overmesh import log, rpc
from overmesh.agent.joinport import certificate_request
from overmesh.agent.state import Keys
from overmesh.controller.membership import node_id
from overmesh.errors import NotFoundError, OvermeshError, StoreUnavailableError, UnreachableError
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.token import JoinToken
from tests.faults.agents import Follower, Reporting
from tests.faults.history import OK, REFUSED, UNKNOWN, Call, Recorder
from tests.faults.wire import PATIENCE, TIMEOUT, Controller, identity

NETWORK = "mesh"
# Seconds between two attempts.
PAUSE = 0.2
# How often a host that was removed comes back with the keys that it had.
AGAIN = 0.2
# Nobody's clock may outlast a token by accident.
TTL = 30 * 86400

Ask = Callable[[Controller], Awaitable[Any]]


@dataclass(slots=True)
class Guest:
    """A host that comes and goes."""

    keys: Keys
    name: str

    @property
    def id(self) -> str:
        """The node id that follows from its key."""
        return node_id(self.keys.public)


@dataclass
class Clients:
    """What they share. size: so many of those who come and go are members, or half as many."""

    controllers: list[Controller]
    recorder: Recorder
    random: random.Random
    size: int
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: "asyncio.Queue[JoinToken]" = field(default_factory=lambda: asyncio.Queue(4))
    members: list[Guest] = field(default_factory=list)
    former: deque[Guest] = field(default_factory=lambda: deque(maxlen=20))
    names: int = 0

    # Asking.

    async def ask(self, call: Call, ask: Ask) -> Any:
        """Ask one controller after the other until there is an answer; return it, or None.

        Sets the call's outcome. A refusal after an attempt without an answer proves nothing.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE
        unanswered = False
        while asyncio.get_running_loop().time() < deadline:
            controller = self.random.choice(self.controllers)
            call.controller = controller.name
            try:
                answer = await ask(controller)
            except (UnreachableError, StoreUnavailableError) as error:
                unanswered, call.error = True, str(error)
            except OvermeshError as error:
                call.error = f"{type(error).__name__}: {error}"
                call.outcome = UNKNOWN if unanswered else REFUSED
                return None
            else:
                call.outcome = OK
                return answer
            await asyncio.sleep(self.random.random() * PAUSE)
        call.outcome = UNKNOWN
        return None

    async def order(self, call: Call, method: str, request: Any) -> Any:
        """Ask as operators do: under one request id, however often."""
        known_as = rpc.request_id()
        return await self.ask(call, lambda controller: controller.admin(method, request, TIMEOUT, known_as))

    async def wish(self, often: float, what: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again, about every so many seconds, until it is time to be quiet."""
        while not self.quiet.is_set():
            await what()
            await asyncio.sleep(often * 2 * self.random.random())

    # Tokens.

    async def make_token(self) -> None:
        """Make a token, when there are too few."""
        uses = self.random.choice((0, 1, 1, 3))
        with self.recorder.call("operator", "token", uses=uses) as call:
            request = admin_pb2.CreateTokenRequest(network=NETWORK, uses=uses, ttl_seconds=TTL)
            reply = await self.order(call, "CreateToken", request)
            if reply:
                call.said["token"] = reply.token.id
        if reply:
            token = JoinToken.parse(reply.secret_token)
            for _ in range(uses or 3):
                await self.tokens.put(token)

    # Coming.

    async def join(self) -> None:
        """Let a host join, new or back again."""
        if len(self.members) >= self.size or self.tokens.empty():
            return
        back = self.former and self.random.random() < AGAIN
        guest = self.former.popleft() if back else self._newcomer()
        token = self.tokens.get_nowait()
        _, call = await self.joined(guest, token)
        if call.ok:
            self.members.append(guest)
        elif call.outcome == REFUSED and back:
            self.former.append(guest)

    def _newcomer(self) -> Guest:
        self.names += 1
        return Guest(Keys.new(), f"guest-{self.names}")

    async def joined(self, guest: Guest, token: JoinToken) -> tuple[mesh_pb2.JoinReply | None, Call]:
        """Join as a guest; return the answer, if there was one, and the call."""
        request = mesh_pb2.JoinRequest(
            token_id=token.id,
            token_secret=token.secret_text,
            name=guest.name,
            csr=certificate_request(guest.keys.tls, guest.name),
            public_key=guest.keys.public,
            host_id=guest.name,
        )
        with self.recorder.call("guest", "join", node=guest.id, token=token.id) as call:
            reply = await self.ask(call, lambda controller: controller.join(request, TIMEOUT))
            if reply:
                record = mesh_pb2.NodeRecord.FromString(mesh_pb2.Signed.FromString(reply.node).body)
                call.said |= {"addresses": list(record.addresses), "revision": reply.revision}
        return reply, call

    # Going.

    async def remove(self) -> None:
        """Remove a member; then look whether whoever confirmed that still knows it."""
        if len(self.members) < self.size / 2:
            return
        guest = self.members.pop(self.random.randrange(len(self.members)))
        with self.recorder.call("operator", "remove", node=guest.id) as call:
            request = admin_pb2.RemoveNodeRequest(network=NETWORK, node=guest.id)
            reply = await self.order(call, "RemoveNode", request)
            if reply:
                call.said["revision"] = reply.revision
        if call.outcome == REFUSED:
            self.members.append(guest)
        if call.ok:
            await self._look(guest, next(one for one in self.controllers if one.name == call.controller))
            self.former.append(guest)

    async def _look(self, guest: Guest, controller: Controller) -> None:
        with self.recorder.call("operator", "look", node=guest.id) as call:
            request = admin_pb2.ListNodesRequest(network=NETWORK, node=guest.id)
            call.controller = controller.name
            try:
                reply = await controller.admin("ListNodes", request, TIMEOUT, rpc.request_id())
                call.outcome, call.said["found"] = OK, bool(reply.nodes)
            except NotFoundError:
                call.outcome, call.said["found"] = OK, False
            except OvermeshError as error:
                call.error = str(error)


async def run(settings: dict[str, Any]) -> None:
    """Be all of them until SIGTERM."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(Recorder.open(Path(settings["history"])))
        controllers = [
            await stack.enter_async_context(Controller.open(**one, root=Path(settings["root"])))
            for one in settings["controllers"]
        ]
        clients = Clients(controllers, recorder, random.Random(settings["seed"]), settings["members"])
        loop.add_signal_handler(signal.SIGUSR1, clients.quiet.set)
        loop.add_signal_handler(signal.SIGTERM, end.set)
        followers = await _followers(clients, settings, stack)
        print("ready", flush=True)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(clients.wish(0.3, clients.join))
            for _ in range(2):
                tasks.create_task(clients.wish(0.4, clients.remove))
            making = tasks.create_task(clients.wish(0.1, clients.make_token))
            for follower in followers:
                reporting = Reporting(follower, recorder, clients.random)
                tasks.create_task(clients.wish(3.0, reporting.move))
            tasks.create_task(clients.wish(4.0, lambda: clients.random.choice(followers).restart()))
            await clients.quiet.wait()
            while not making.done():  # it may wait for somebody to take a token
                while not clients.tokens.empty():
                    clients.tokens.get_nowait()
                await asyncio.sleep(0.05)
        print("quiet", flush=True)
        await end.wait()


async def _followers(clients: Clients, settings: dict[str, Any], stack: AsyncExitStack) -> list[Follower]:
    """Let those join who stay, before anything goes wrong."""
    followers = []
    making = asyncio.create_task(clients.wish(0, clients.make_token))
    known = [one.address for one in clients.controllers]
    for number in range(settings["followers"]):
        guest = Guest(Keys.new(), f"agent-{number}")
        reply, call = await clients.joined(guest, await clients.tokens.get())
        if reply is None:
            raise SystemExit(f"{guest.name} can't join: {call.error}")
        mine = identity(guest.keys, guest.name, reply, known, Path(settings["root"]))
        follower = Follower(mine, Path(settings["directory"]), clients.recorder)
        stack.push_async_callback(follower.stop)
        followers.append(follower)
    making.cancel()
    return followers


if __name__ == "__main__":
    log.setup("json")
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))
