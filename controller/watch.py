"""The streams of the agents: one pair of tasks each.

    reader: acks ──► Agents      writer: whatever session.py says is due ──► agent

Which rules a stream follows is in session.py; who is connected, in agents.py; here is the I/O.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from overmesh import trace
from overmesh.controller.agents import Agent, Agents
from overmesh.controller.members.clones import Clones
from overmesh.controller.trust import Identity
from overmesh.errors import InvalidError
from overmesh.proto import mesh_pb2

# Snapshots that are being written at once: each fills socket buffers of the kernel.
SNAPSHOTS_AT_ONCE = 32
HELLO_TIMEOUT = 10.0


class Stream(Protocol):
    """What a gRPC call offers of a stream."""

    async def read(self) -> Any:
        """Return the next request; anything else once the caller has finished."""

    async def write(self, message: bytes) -> None:
        """Send one encoded WatchReply."""


class Watch:
    """Serves the stream of every agent.

    Args:
        agents: who is connected.
        clones: tell a node's host from its copies.
        healthy: is told how a node is.
        acked: is told how many seconds an ack took.
        clock: monotonic.

    """

    def __init__(
        self,
        agents: Agents,
        clones: Clones,
        healthy: Callable[[Identity, mesh_pb2.Health], None],
        acked: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agents = agents
        self._clones = clones
        self._healthy = healthy
        self._acked = acked
        self._clock = clock
        self._snapshots = asyncio.Semaphore(SNAPSHOTS_AT_ONCE)

    async def serve(self, identity: Identity, stream: Stream) -> None:
        """Keep one agent's map at the head until it hangs up.

        Raises:
            RemovedError, CloneError: it has to stop, see `Agents` and `Clones`.
            UnreachableError: it has to connect again.
            InvalidError: it does not follow the protocol.

        """
        hello = await _hello(stream)
        await self._agents.catch_up(identity, hello)
        await self._clones.check(identity, hello.host_id, hello.instance, replaced=hello.replaced)
        agent = self._agents.open(identity, hello, self._clock())
        if hello.HasField("health"):
            self._healthy(identity, hello.health)
        reader = asyncio.create_task(self._read(agent, stream))
        reader.add_done_callback(partial(_reading_ended, agent))
        try:
            await self._write(agent, stream, reader)
        finally:
            reader.cancel()
            agent.rest()
            self._agents.close(agent)

    async def _read(self, agent: Agent, stream: Stream) -> None:
        async for request in _requests(stream):
            if request.WhichOneof("body") != "ack":
                raise InvalidError("after Hello only Ack is expected")
            sent = agent.session.in_flight_since
            with trace.span("ack", request.ack.traceparent, **self._agents.named(agent.identity)):
                self._agents.ack(agent, request.ack)
            if request.ack.HasField("health"):
                self._healthy(agent.identity, request.ack.health)
            if sent is not None and agent.session.in_flight_since is None:
                self._acked(self._clock() - sent)

    async def _write(self, agent: Agent, stream: Stream, reader: "asyncio.Task[None]") -> None:
        while not reader.done():
            if agent.end:
                raise agent.end
            agent.wake.clear()
            messages = agent.session.poll(self._clock())
            if messages:
                await self._send(messages, stream)
                agent.session.written(self._clock())
                continue
            agent.wake_in(agent.session.deadline() - self._clock())
            await agent.wake.wait()
        reader.result()

    async def _send(self, messages: Sequence[bytes], stream: Stream) -> None:
        if len(messages) == 1:
            await stream.write(messages[0])
            return
        async with self._snapshots:
            for message in messages:
                await stream.write(message)


def _reading_ended(agent: Agent, reader: "asyncio.Task[None]") -> None:
    if not reader.cancelled():
        reader.exception()  # seen, even when the writer ends for another reason
    agent.wake.set()


async def _hello(stream: Stream) -> mesh_pb2.Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT):
            request = await stream.read()
    except TimeoutError:
        raise InvalidError(f"no Hello within {HELLO_TIMEOUT:.0f} s") from None
    if not isinstance(request, mesh_pb2.WatchRequest) or request.WhichOneof("body") != "hello":
        raise InvalidError("the first message has to be Hello")
    return request.hello


async def _requests(stream: Stream) -> AsyncIterator[mesh_pb2.WatchRequest]:
    while isinstance(request := await stream.read(), mesh_pb2.WatchRequest):
        yield request
