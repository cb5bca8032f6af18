"""How a host joins, step by step, and leaves.

overmesh.agent.join   reach, TLS, token, address     the host is a member, on disk
systemd, or us        the agent runs                 it gets the map and starts the fastpath
the agent's socket    first map, first peer          somebody answers through the overlay
the last lines        what the user wants to know next
"""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import typer
from rich.text import Text

from overmesh import trace
from overmesh.agent import daemon
from overmesh.agent import join as joins
from overmesh.agent import leave as leaving
from overmesh.agent.calls import Left
from overmesh.agent.fastpath import answers
from overmesh.agent.state import StateDir
from overmesh.cli import client, output, systemd
from overmesh.cli.status import as_dict, packets
from overmesh.config import AgentConfig
from overmesh.errors import NotYetError, StateError, UnreachableError
from overmesh.model import NETWORK_KEY, Network, Node, node_key
from overmesh.proto import agent_pb2
from overmesh.proto.signed import read

_LOOK_EVERY = 0.1
_ANSWER_WITHIN = 0.5
# Once somebody answered, the others get this long to do so before they are counted.
_OTHERS_WITHIN = 1.0
_ASKED_AT_MOST = 32
_LEAVE_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. flags: the agent's settings among it, as they were typed."""

    host: str
    token: str
    name: str
    foreground: bool
    wait: bool
    seconds: int
    flags: Sequence[str]


@dataclass(slots=True)
class Steps:
    """What was done so far; shown as it happens unless a machine reads."""

    quiet: bool
    done: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, step: str, detail: str = "") -> None:
        """Note that a step is done, or that somebody else has to do it."""
        self.done.append({"step": step, "detail": detail})
        waiting = step == joins.WAITING
        if not self.quiet:
            mark = ("… ", "yellow") if waiting else ("✓ ", output.GOOD)
            output.show(Text.assemble(mark, f"{step:<11} ", (detail, "" if waiting else output.DIM)))
        elif waiting:
            typer.echo(f"meshctl: {detail}.", err=True)


async def join(config: AgentConfig, wanted: Wanted, *, as_json: bool) -> None:
    """Make this host a member and see that it works; with `foreground`, be its agent from then on.

    Raises:
        NotYetError: a member, but no peer answers in time.
        OvermeshError: no member; nothing was left behind.

    """
    steps = Steps(quiet=as_json)
    joined = await _member(config, wanted, steps)
    runs = answers(config.socket)
    if wanted.foreground and not runs:
        await _be_the_agent(config, partial(_closing, config, wanted, joined, steps), as_json=as_json)
        return
    if systemd.present() and not runs:
        systemd.start()
        steps("service", f"{systemd.UNIT} runs, now and after every boot")
        runs = True
    closing = _closing if runs else _not_started
    (await closing(config, wanted, joined, steps)).show(as_json=as_json)


async def _member(config: AgentConfig, wanted: Wanted, steps: Steps) -> joins.Joined:
    """Join; a container that starts again is a member already, and needs no controller for that."""
    try:
        with trace.tracing(config.trace, "agent"), trace.span("join"):
            return await joins.join(config, wanted.host, wanted.token, wanted.name, steps, wait=wanted.wait)
    except UnreachableError as error:
        with suppress(StateError):
            if wanted.foreground:
                joined = _from_disk(config)
                steps("state", f"a member already; {error.cause}, so the last map is used")
                return joined
        raise


def _from_disk(config: AgentConfig) -> joins.Joined:
    mine = StateDir(config.state_dir).identity().membership
    network, node = read(NETWORK_KEY, mine.network), read(node_key(mine.node_id), mine.node)
    assert isinstance(network, Network)
    assert isinstance(node, Node)
    return joins.Joined(node.id, node.name, network.name, network.mode, node.addresses, already_member=True)


async def _be_the_agent(
    config: AgentConfig, closing: Callable[[], Awaitable["Closing"]], *, as_json: bool
) -> None:
    """Run the agent until it is told to stop, and say how things are when they are known."""

    async def say() -> None:
        try:
            (await closing()).show(as_json=as_json)
        except NotYetError as error:
            # A container that ended here would never see the peer that comes up later.
            typer.echo(f"meshctl: {error.cause}. The agent goes on.", err=True)

    saying = asyncio.create_task(say())
    try:
        await daemon.run(config)
    finally:
        saying.cancel()


@dataclass(frozen=True, slots=True)
class Closing:
    """What there is to say at the end. status: None when the agent was not started or not waited for."""

    joined: joins.Joined
    steps: Steps
    started: bool
    status: agent_pb2.StatusReply | None
    answering: int
    next: str

    def show(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            output.show_json(self._as_json())
        else:
            output.show("", output.facts([*self._facts(), ("next", self.next)]))

    def _facts(self) -> Iterator[tuple[str, output.Cell]]:
        yield "node", f"{self.joined.name} in network {self.joined.network}"
        yield "addresses", ", ".join(map(str, self.joined.addresses))
        yield "packets", packets(self.joined.mode, self.status.peers if self.status else ())
        if self.status:
            yield "interface", f"{self.status.interface}, MTU {self.status.mtu}: {self.status.mtu_reason}"
            yield "fastpath", f"{self.status.fastpath.backend}: {self.status.fastpath.reason}"
            hosts = len(_hosts(self.status))
            yield "peers", f"{self.answering} of {hosts} answer" if hosts else "none yet"
        else:
            yield "agent", "started" if self.started else Text("not started", "yellow")

    def _as_json(self) -> dict[str, object]:
        return {
            "name": self.joined.name,
            "node_id": self.joined.node_id,
            "network": self.joined.network,
            "mode": output.mode(self.joined.mode),
            "addresses": list(map(str, self.joined.addresses)),
            "already_member": self.joined.already_member,
            "steps": self.steps.done,
            "peers_answering": self.answering,
            "status": as_dict(self.status) if self.status else None,
            "next": self.next,
        }


async def _not_started(_: AgentConfig, wanted: Wanted, joined: joins.Joined, steps: Steps) -> Closing:
    run = shlex.join(["meshctl", "agent", "run", *wanted.flags])
    return Closing(joined, steps, False, None, 0, f"start the agent: {run}")


async def _closing(config: AgentConfig, wanted: Wanted, joined: joins.Joined, steps: Steps) -> Closing:
    if not wanted.wait:
        return Closing(joined, steps, True, None, 0, "meshctl status")
    missing = ["the agent does not answer"]
    try:
        async with asyncio.timeout(wanted.seconds):
            return await _met(config, joined, steps, missing)
    except TimeoutError:
        raise NotYetError(
            f"joined, but within {wanted.seconds} s {missing[-1]}",
            f"see meshctl status; UDP port {config.port_in(joined.mode)} has to be open between the hosts",
        ) from None


async def _met(config: AgentConfig, joined: joins.Joined, steps: Steps, missing: list[str]) -> Closing:
    """Wait for map and peers; `missing` ends with what has not come yet."""
    status = await _status(config)
    while not (status.revision and status.fastpath.running):
        missing.append("the fastpath does not run" if status.revision else "no map has come")
        await asyncio.sleep(_LOOK_EVERY)
        status = await _status(config)
    steps("first map", f"revision {status.revision}, {output.counted(len(status.peers), 'peer')}")
    hosts = _hosts(status)
    if not hosts:
        return Closing(joined, steps, True, status, 0, "let the next host in: meshctl token create")
    missing.append("no peer answers")
    first, answering = await _answers(config, hosts)
    steps("first peer", f"{first.peer} answers in {output.milliseconds(first.rtt_ns)}")
    return Closing(joined, steps, True, status, answering, f"meshctl ping {first.peer}")


def _hosts(status: agent_pb2.StatusReply) -> list[agent_pb2.Peer]:
    """Return the peers that can be expected to answer: a stock WireGuard peer may be a phone that sleeps."""
    return [peer for peer in status.peers if output.kind(peer.kind) == "agent"]


async def _status(config: AgentConfig) -> agent_pb2.StatusReply:
    """Return the agent's status, once it runs."""
    request = agent_pb2.StatusRequest()
    while True:
        with suppress(UnreachableError, NotYetError):
            status: agent_pb2.StatusReply = await client.ask(
                client.agent(config), lambda stub: stub.Status(request)
            )
            return status
        await asyncio.sleep(_LOOK_EVERY)


async def _answers(config: AgentConfig, peers: Sequence[agent_pb2.Peer]) -> tuple[agent_pb2.PingReply, int]:
    """Return the first answer of a peer, and how many answered soon after."""
    asked = [asyncio.create_task(_answer(config, peer)) for peer in peers[:_ASKED_AT_MOST]]
    try:
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop().result()
        if waiting:
            more, _ = await asyncio.wait(waiting, timeout=_OTHERS_WITHIN)
            done |= more
        return first, 1 + len(done)
    finally:
        for task in asked:
            task.cancel()


async def _answer(config: AgentConfig, peer: agent_pb2.Peer) -> agent_pb2.PingReply:
    """Ask one peer until it answers: it may not have heard of this host yet."""
    request = agent_pb2.PingRequest(
        peer=peer.node_id, count=1, interval_ms=1000, timeout_ms=int(_ANSWER_WITHIN * 1000)
    )
    async with client.agent(config) as stub:
        while True:
            async for reply in stub.Ping(request):
                if reply.answered:
                    answer: agent_pb2.PingReply = reply
                    return answer
            await asyncio.sleep(_LOOK_EVERY)


async def leave(config: AgentConfig, *, force: bool) -> Left:
    """Leave the mesh, through the agent or in its place."""
    if answers(config.socket):
        left = await _leave_through_agent(config, force=force)
    else:
        left = await leaving.leave(config, force=force)
    if systemd.present():
        systemd.stop()
    return left


async def _leave_through_agent(config: AgentConfig, *, force: bool) -> Left:
    request = agent_pb2.LeaveRequest(force=force)
    reply: agent_pb2.LeaveReply = await client.ask(
        client.agent(config), lambda stub: stub.Leave(request), _LEAVE_WITHIN
    )
    return Left(reply.told_controller, reply.copy_of)
