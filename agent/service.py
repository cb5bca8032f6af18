"""The Agent service of proto/agent.proto: what meshctl on this host asks."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

from overmesh import __version__, rpc
from overmesh.agent import calls
from overmesh.agent.fastpath import answers
from overmesh.agent.icmp import echo
from overmesh.errors import FastpathError, NotFoundError, NotYetError, OvermeshError, StateError
from overmesh.model import Address, Kind, Mode, Peer, PeerMap
from overmesh.proto import agent_pb2, agent_pb2_grpc, fastpath_pb2, mesh_pb2
from overmesh.proto.codec import endpoint_message, problem_messages

if TYPE_CHECKING:
    from overmesh.agent.daemon import Agent, Current

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_GRACE = 1.0
# Seconds until controllers are asked again where the map stands.
_PAUSE = 0.5
_PATHS = {Mode.PLAIN: "plain geneve", Mode.SEALED: "sealed wireguard"}


@asynccontextmanager
async def serve(service: "Service", path: Path) -> AsyncIterator[None]:
    """Answer on a unix socket that only this user may open.

    Raises:
        StateError: another agent answers there.

    """
    if answers(path):
        raise StateError(f"another agent answers on {path}", "stop it, or name another runtime_dir")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    umask = os.umask(0o177)  # the socket must never be open to others, not even for a moment
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(umask)
    await server.start()
    try:
        yield
    finally:
        await server.stop(_GRACE)


class Service(agent_pb2_grpc.AgentServicer):
    """Answers from what the agent knows; changes nothing but in Leave and RotateKeys."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    async def Status(self, _: agent_pb2.StatusRequest, context: Context) -> agent_pb2.StatusReply:  # noqa: N802
        """Return what is true on this host."""
        return await _answered(context, self.status)

    async def Ping(  # noqa: N802
        self, request: agent_pb2.PingRequest, context: Context
    ) -> AsyncIterator[agent_pb2.PingReply]:
        """Yield one reply per probe; without a count, until the caller has enough."""
        peer, probe = await _answered(context, lambda: self._prober(request))
        loop = asyncio.get_running_loop()
        for sequence in range(1, request.count + 1) if request.count else count(1):
            began = loop.time()
            reply = await _answered(context, probe)
            reply.sequence, reply.peer = sequence, peer.node.name
            yield reply
            if sequence != request.count:
                await asyncio.sleep(began + request.interval_ms / 1000 - loop.time())

    async def Wait(self, request: agent_pb2.WaitRequest, context: Context) -> agent_pb2.WaitReply:  # noqa: N802, ARG002
        """Return when this host has applied a revision, or all that was done before, or time is up."""
        wait = _Wait(self._agent, request.revision)
        with suppress(TimeoutError):
            async with asyncio.timeout(request.timeout_ms / 1000):
                await wait.done()
        return agent_pb2.WaitReply(reached=not wait.lacks, revision=self._agent.revision, reason=wait.lacks)

    async def Leave(self, request: agent_pb2.LeaveRequest, context: Context) -> agent_pb2.LeaveReply:  # noqa: N802
        """Leave the mesh; the agent ends afterwards."""
        left = await _answered(context, lambda: self._agent.leave(force=request.force))
        return agent_pb2.LeaveReply(told_controller=left.told, copy_of=left.copy_of)

    async def RotateKeys(  # noqa: N802
        self, request: agent_pb2.RotateKeysRequest, context: Context
    ) -> agent_pb2.RotateKeysReply:
        """Change this host's keys; return once others know of the new ones."""
        return await _answered(context, lambda: self._rotate_keys(request.grace_seconds))

    async def _rotate_keys(self, grace: int) -> agent_pb2.RotateKeysReply:
        peers, rekeying = _settled(self._agent).view.map.peers, self._agent.rekeying
        await rekeying.begin(grace)
        return agent_pb2.RotateKeysReply(
            until=int(rekeying.change.until if rekeying.change else time.time()),
            stock_peers=[peer.node.name for peer in peers if peer.node.kind is Kind.WIREGUARD],
        )

    # Status.

    async def status(self) -> agent_pb2.StatusReply:
        """Return what `meshctl status` shows."""
        stats = await self._stats()
        now = _settled(self._agent)  # after the await, or revision and peers would be of two moments
        network, me = now.view.map.network, now.view.map.me
        contact = self._agent.sync.contact
        return agent_pb2.StatusReply(
            name=me.name,
            node_id=me.id,
            network=network.name,
            network_number=network.number,
            mode=mesh_pb2.Mode.Name(network.mode),
            addresses=map(str, me.addresses),
            interface=now.desired.interface,
            mtu=now.desired.mtu,
            mtu_reason=now.desired.mtu_reason,
            fastpath=self._fastpath(stats),
            revision=now.view.map.revision,
            digest=self._agent.replica.digest.to_bytes(),
            map_age_seconds=time.time() - contact.confirmed if contact.confirmed else -1,
            controller=agent_pb2.Controller(
                address=contact.address,
                connected=contact.connected,
                error=contact.error,
                since_seconds=time.monotonic() - contact.since,
            ),
            peers=_peers(now.view.map, stats),
            drops=stats.drops,
            problems=problem_messages(self._agent.problems),
            endpoints=map(endpoint_message, now.endpoints),
            version=__version__,
            membership="removed" if contact.removed else "member",
            certificate_until=int(self._agent.renewal.until),
            membership_until=me.not_after,
            keys_since=self._agent.identity.membership.keys_since,
            key_change=self._key_change(),
        )

    def _key_change(self) -> agent_pb2.KeyChange | None:
        rekeying = self._agent.rekeying
        change = rekeying.change
        if change is None:
            return None
        return agent_pb2.KeyChange(stage=change.stage, until=int(change.until), error=rekeying.failure)

    async def _stats(self) -> fastpath_pb2.StatsReply:
        with suppress(FastpathError):
            return await self._agent.fastpath.stats()
        return fastpath_pb2.StatsReply()

    def _fastpath(self, stats: fastpath_pb2.StatsReply) -> agent_pb2.Fastpath:
        buffers = stats.socket_buffers
        return agent_pb2.Fastpath(
            running=bool(stats.pid),
            pid=stats.pid,
            backend=stats.backend,
            reason=stats.backend_reason or self._agent.fastpath.error,
            uptime_seconds=stats.uptime_ms / 1000,
            version=stats.version,
            listening=stats.listening,
            restarts=self._agent.fastpath.restarts,
            offloads=[
                agent_pb2.Offload(name=entry.name, on=entry.on, reason=entry.reason, failures=entry.failures)
                for entry in stats.offloads
            ],
            lanes=stats.lanes,
            socket_buffers=agent_pb2.SocketBuffers(
                receive=buffers.receive, send=buffers.send, wanted=buffers.wanted
            )
            if stats.HasField("socket_buffers")
            else None,
        )

    # Ping.

    async def _prober(
        self, request: agent_pb2.PingRequest
    ) -> tuple[Peer, Callable[[], Awaitable[agent_pb2.PingReply]]]:
        """Return whom to probe, and how.

        Asked for by address, the peer's host answers: the whole way, through both TUN interfaces.
        Asked for by name, its fastpath does: the tunnel alone. A stock WireGuard peer has none.
        """
        peers = _settled(self._agent).view.map
        peer, address = _find(peers, request.peer)
        timeout = request.timeout_ms / 1000
        if address is None and peer.node.kind is Kind.AGENT:
            return peer, lambda: self._probe_fastpath(peer, _PATHS[peers.network.mode], timeout)
        asked = address or peer.node.addresses[0]
        return peer, lambda: self._probe_host(peers, asked, timeout)

    async def _probe_fastpath(self, peer: Peer, path: str, timeout: float) -> agent_pb2.PingReply:
        reply = await self._agent.fastpath.probe(peer.node.id, timeout)
        how = "answered by its fastpath" if reply.answered else "not answered"
        return agent_pb2.PingReply(
            answered=reply.answered,
            rtt_ns=reply.rtt_ns,
            address=str(peer.node.addresses[0]),
            path=f"{path} to {reply.endpoint}, {how}" if reply.endpoint else "no endpoint known",
        )

    async def _probe_host(self, peers: PeerMap, address: Address, timeout: float) -> agent_pb2.PingReply:
        source = next((own for own in peers.me.addresses if own.version == address.version), None)
        if source is None:
            raise NotFoundError(f"this host has no IPv{address.version} address in the overlay")
        seconds = await echo(address, source, timeout)
        how = "not answered" if seconds is None else "answered by its host"
        return agent_pb2.PingReply(
            answered=seconds is not None,
            rtt_ns=round((seconds or 0) * 1e9),
            address=str(address),
            path=f"ICMP echo through {self._agent.config.interface}, {how}",
        )


class _Wait:
    """For a host to have applied a revision, 0 for all that was done before. lacks: what is still amiss."""

    def __init__(self, agent: "Agent", revision: int) -> None:
        self.lacks = "no controller has answered"
        self._agent = agent
        self._target = mesh_pb2.HeadReply(revision=revision)

    async def done(self) -> None:
        while not self._target.revision:
            await self._ask()
        self.lacks = f"not at {self._target.revision}"
        async with self._agent.applied:
            await self._agent.applied.wait_for(self._holds)
        self.lacks = ""

    async def _ask(self) -> None:
        sync = self._agent.sync
        try:
            self._target = await calls.head(sync.identity, sync.controllers)
        except OvermeshError as error:
            self.lacks = error.cause
            await asyncio.sleep(_PAUSE)

    def _holds(self) -> bool:
        """Tell whether the map is applied, of which the controller may have told another revision."""
        agent, target = self._agent, self._target
        same = agent.revision == agent.replica.revision and agent.replica.digest.to_bytes() == target.digest
        return same or agent.revision >= target.revision


def _settled(agent: "Agent") -> "Current":
    if agent.current is None:
        raise NotYetError("the agent is still starting", "ask again in a second")
    return agent.current


def _find(peers: PeerMap, wanted: str) -> tuple[Peer, Address | None]:
    """Return a peer by name, node id or overlay address; with the address if that was given."""
    address = None
    with suppress(ValueError):
        address = ip_address(wanted)
    for peer in peers.peers:
        if wanted in (peer.node.name, peer.node.id) or address in peer.node.addresses:
            return peer, address
    names = ", ".join(peer.node.name for peer in peers.peers[:10])
    raise NotFoundError(
        f"no peer {wanted!r} in the map", f"peers: {names}" if names else "there are no peers yet"
    )


def _peers(peers: PeerMap, stats: fastpath_pb2.StatsReply) -> list[agent_pb2.Peer]:
    known = {entry.id: entry for entry in stats.peers}
    silent = fastpath_pb2.PeerStats(last_heard_ms_ago=-1, last_handshake_ms_ago=-1)
    mode = peers.network.mode
    return [_peer(peer, mode, known.get(peer.node.id, silent)) for peer in peers.peers]


def _peer(peer: Peer, mode: Mode, stats: fastpath_pb2.PeerStats) -> agent_pb2.Peer:
    return agent_pb2.Peer(
        name=peer.node.name,
        node_id=peer.node.id,
        kind=mesh_pb2.Kind.Name(peer.node.kind),
        addresses=map(str, peer.node.addresses),
        endpoint=stats.endpoint,
        # One of an older version, which runs on after an upgrade, tells of its first lane only.
        endpoints=stats.endpoints or filter(None, [stats.endpoint]),
        mode=mesh_pb2.Mode.Name(mode),
        suite=mesh_pb2.Suite.Name(stats.suite),
        last_handshake_seconds=_seconds(stats.last_handshake_ms_ago),
        path_mtu=stats.path_mtu,
        path_mtu_probed=stats.path_mtu_probed,
        last_heard_seconds=_seconds(stats.last_heard_ms_ago),
        tx_packets=stats.tx_packets,
        tx_bytes=stats.tx_bytes,
        rx_packets=stats.rx_packets,
        rx_bytes=stats.rx_bytes,
        drops=stats.drops,
    )


def _seconds(milliseconds: int) -> float:
    """Return how long ago something was; negative: never."""
    return milliseconds / 1000 if milliseconds >= 0 else -1


async def _answered(context: Context, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work; an error of ours ends the call under its name."""
    try:
        return await work()
    except OvermeshError as error:
        await rpc.abort(context, error)
