"""The whole agent but its packets, with the fake fastpath: run by test_daemon.py, in an empty network."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.agent import service as services
from overmesh.agent.daemon import Agent
from overmesh.agent.fastpath import answers
from overmesh.agent.host import Route
from overmesh.agent.netlink import Netlink
from overmesh.agent.preflight import check_host, check_ports, host_id, possible_modes
from overmesh.agent.service import Service, serve
from overmesh.agent.state import StateDir
from overmesh.config import AgentConfig
from overmesh.errors import (
    CorruptStateError,
    HostError,
    NotFoundError,
    NotYetError,
    OvermeshError,
    PortInUseError,
    UnreachableError,
)
from overmesh.model import Kind, Mode
from overmesh.proto import agent_pb2, agent_pb2_grpc, fastpath_pb2, fastpath_pb2_grpc, mesh_pb2
from tests.unit.agent.test_fastpath import alive, settings, until
from tests.unit.agent.test_state import identity
from tests.unit.agent.world import NETWORK, members, node, replica, signed, snapshot


@asynccontextmanager
async def running(config: AgentConfig) -> AsyncIterator[tuple[Agent, Any]]:
    """Run a member's agent; give it and the stub of its service."""
    state = StateDir(config.state_dir)
    async with Netlink.open() as netlink:
        with state.locked():
            agent = Agent(config, state, state.identity(), netlink)
            async with serve(Service(agent), config.socket):
                work = asyncio.create_task(agent.run())
                async with grpc.aio.insecure_channel(f"unix:{config.socket}") as channel:
                    try:
                        await settled(agent)
                        yield agent, agent_pb2_grpc.AgentStub(channel)  # type: ignore[no-untyped-call]
                    finally:
                        agent.stop()
                        await work


async def settled(agent: Agent) -> None:
    """Wait until the fastpath has what the agent wants it to have."""
    async with asyncio.timeout(20):
        while await agent.fastpath.applied() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def said(call: Awaitable[Any]) -> OvermeshError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return rpc.raised(raised.value, "the agent")


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[AgentConfig]:
    """Give the settings of a member that has the map of three nodes on disk."""
    config = replace(settings(tmp_path), state_dir=tmp_path / "state", host_id="here")
    state = StateDir(config.state_dir)
    held = replica()
    held.receive(snapshot(5, members(2, 3))[0])
    with state.locked():
        state.save_identity(identity())
        state.save_map(held.held())
    yield config
    if answers(config.fastpath_socket):
        async with grpc.aio.insecure_channel(f"unix:{config.fastpath_socket}") as channel:
            stub: Any = fastpath_pb2_grpc.FastpathStub(channel)  # type: ignore[no-untyped-call]
            await stub.Shutdown(fastpath_pb2.ShutdownRequest())


async def routes(netlink: Netlink) -> dict[str, Route]:
    return {str(route.prefix): route for route in await netlink.routes() if route.protocol == 77}


async def test_a_host_comes_up_from_its_disk_and_drift_is_repaired(config: AgentConfig) -> None:
    async with running(config) as (agent, _), Netlink.open() as netlink:
        assert agent.problems == ()
        link = await netlink.link("om0")
        assert link
        assert (link.kind, link.mtu, link.up) == ("tun", 1420, True)
        held = {entry.address for entry in (await netlink.underlay()).addresses if entry.link == link.index}
        assert {ip_address("10.77.0.1"), ip_address("fd77::1")} <= held
        ours = await routes(netlink)
        assert sorted(ours) == ["10.77.0.0/16", "fd77::/64"]
        assert [str(route.source) for route in ours.values()] == ["10.77.0.1", "fd77::1"]
        assert (await agent.fastpath.stats()).revision == 5

        await netlink.remove_route(ours["10.77.0.0/16"])
        await netlink.set_link_up(link.index, 1300)
        await agent.apply()
        assert sorted(await routes(netlink)) == ["10.77.0.0/16", "fd77::/64"]
        repaired = await netlink.link("om0")
        assert repaired == link

        await netlink.delete_tun("om0")
        await agent.apply()
        assert sorted(await routes(netlink)) == ["10.77.0.0/16", "fd77::/64"]
        assert agent.problems == ()
        await agent.leave(force=True)


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


async def test_two_addresses_of_a_subnet() -> None:
    ip("link", "add", "two0", "type", "bridge")
    try:
        for address in ("198.51.100.1/24", "198.51.100.2/24", "2001:db8:5::1/64"):
            ip("address", "add", address, "dev", "two0", *(["nodad"] if ":" in address else []))
        async with Netlink.open() as netlink:
            underlay = await netlink.underlay()
        link = underlay.link("two0")
        held = [entry for entry in underlay.addresses if link and entry.link == link.index]
        assert [(str(entry.address), entry.usable, entry.secondary) for entry in held] == [
            ("198.51.100.1", True, False),
            ("198.51.100.2", True, True),
            ("2001:db8:5::1", True, False),
        ]
    finally:
        ip("link", "delete", "two0")


async def test_an_agent_that_stops_leaves_everything_as_it_is(config: AgentConfig) -> None:
    async with running(config) as (agent, _):
        assert agent.problems == ()
        pid = (await agent.fastpath.stats()).pid
    async with Netlink.open() as netlink:
        assert await netlink.link("om0")
        assert alive(pid)
    async with running(config) as (agent, _):
        assert (await agent.fastpath.stats()).pid == pid
        await agent.leave(force=True)
    await until(lambda: not alive(pid))


async def test_leaving_takes_everything_down(config: AgentConfig) -> None:
    async with running(config) as (agent, stub), Netlink.open() as netlink:
        pid = (await agent.fastpath.stats()).pid
        error = await said(stub.Leave(agent_pb2.LeaveRequest()))
        assert isinstance(error, UnreachableError)
        assert "--force" in error.fix
        assert await netlink.link("om0"), "nothing has changed"
        reply = await stub.Leave(agent_pb2.LeaveRequest(force=True))
        assert not reply.told_controller
        assert await netlink.link("om0") is None
        await until(lambda: not alive(pid))
    assert not config.socket.exists()
    assert not config.state_dir.exists()


async def test_the_status_says_what_is_true(config: AgentConfig) -> None:
    async with running(config) as (agent, stub):
        assert agent.problems == ()
        status = await stub.Status(agent_pb2.StatusRequest())
        assert (status.name, status.node_id, status.network, status.network_number) == (
            "host1",
            "n1",
            "mesh",
            7,
        )
        assert (status.membership, status.revision, status.digest) == (
            "member",
            5,
            agent.replica.digest.to_bytes(),
        )
        assert list(status.addresses) == ["10.77.0.1", "fd77::1"]
        assert (status.interface, status.mtu) == ("om0", 1420)
        assert (status.fastpath.running, status.fastpath.backend) == (True, "fake")
        assert [(peer.name, peer.last_heard_seconds) for peer in status.peers] == [
            ("host2", -1),
            ("host3", -1),
        ]
        assert not status.controller.connected

        os.kill(status.fastpath.pid, signal.SIGKILL)
        await until(lambda: agent.fastpath.restarts == 1 and agent.fastpath.running)
        again = (await stub.Status(agent_pb2.StatusRequest())).fastpath
        assert (again.running, again.restarts, again.pid == status.fastpath.pid) == (True, 1, False)
        await agent.leave(force=True)


async def test_waiting_for_a_revision(config: AgentConfig) -> None:
    async with running(config) as (agent, stub):
        now = await stub.Wait(agent_pb2.WaitRequest(revision=5, timeout_ms=5000))
        never = await stub.Wait(agent_pb2.WaitRequest(revision=6, timeout_ms=50))
        assert (now.reached, never.reached, never.revision) == (True, False, 5)
        later = asyncio.ensure_future(stub.Wait(agent_pb2.WaitRequest(revision=6, timeout_ms=10_000)))
        await asyncio.sleep(0.05)
        agent.replica.receive(snapshot(6, members(2))[0])
        await agent.apply()
        assert (await later).reached
        await agent.leave(force=True)


async def test_waiting_for_the_map_as_it_is_now(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    coming: list[mesh_pb2.HeadReply | OvermeshError] = []

    async def head(*_: object) -> mesh_pb2.HeadReply:
        answer = coming.pop(0) if len(coming) > 1 else coming[0]
        if isinstance(answer, OvermeshError):
            raise answer
        return answer

    monkeypatch.setattr("overmesh.agent.calls.head", head)
    monkeypatch.setattr(services, "_PAUSE", 0.01)
    away = NotYetError("the store can't be asked: it is away")
    async with running(config) as (agent, stub):
        digest = agent.replica.digest.to_bytes()

        async def waited(*said: mesh_pb2.HeadReply | OvermeshError) -> agent_pb2.WaitReply:
            coming[:] = said
            reply: agent_pb2.WaitReply = await stub.Wait(agent_pb2.WaitRequest(timeout_ms=200))
            return reply

        assert (await waited(mesh_pb2.HeadReply(revision=5, digest=digest))).reached
        assert (await waited(away, mesh_pb2.HeadReply(revision=5, digest=digest))).reached
        assert (await waited(mesh_pb2.HeadReply(revision=9, digest=digest))).reached, "as of another's head"
        assert (await waited(away)).reason == away.cause
        behind = await waited(mesh_pb2.HeadReply(revision=6, digest=b"another"))
        assert (behind.reached, behind.revision, behind.reason) == (False, 5, "not at 6")
        await agent.leave(force=True)


async def test_pinging(config: AgentConfig) -> None:
    async with running(config) as (agent, stub):
        by_name = agent_pb2.PingRequest(peer="host2", count=2, interval_ms=1, timeout_ms=500)
        replies = [reply async for reply in stub.Ping(by_name)]
        assert [(reply.sequence, reply.answered, reply.peer) for reply in replies] == [
            (1, True, "host2"),
            (2, True, "host2"),
        ]
        assert replies[0].path == "plain geneve to 192.0.2.2:6081, answered by its fastpath"
        by_address = agent_pb2.PingRequest(peer="fd77::3", count=1, timeout_ms=50)
        [reply] = [reply async for reply in stub.Ping(by_address)]
        assert (reply.answered, reply.peer, reply.path) == (
            False,
            "host3",
            "ICMP echo through om0, not answered",
        )
        error = await said(anext(aiter(stub.Ping(agent_pb2.PingRequest(peer="nobody", count=1)))))
        assert isinstance(error, NotFoundError)
        assert error.fix == "peers: host2, host3"
        await agent.leave(force=True)


async def test_a_damaged_map_is_said_and_does_without(config: AgentConfig) -> None:
    (config.state_dir / "map.json").write_text("{}")
    async with running(config) as (agent, stub):
        status = await stub.Status(agent_pb2.StatusRequest())
        assert (status.revision, list(status.peers)) == (0, [])
        assert [problem.subject for problem in status.problems] == ["map.json"]
        agent.replica.receive(snapshot(6, members(2))[0])
        assert await agent.apply() == ()
        await agent.leave(force=True)


async def test_an_interface_of_somebody_else_is_not_touched(config: AgentConfig) -> None:
    state = StateDir(config.state_dir)
    async with Netlink.open() as netlink:
        netlink.create_tun("om0")
        link = await netlink.link("om0")
        assert link
        await netlink.add_address(link.index, ip_address("10.8.0.1"))
        with pytest.raises(HostError, match=r"om0 exists and is not ours: it has address 10\.8\.0\.1"):
            await Agent(config, state, state.identity(), netlink).run()
        await netlink.delete_tun("om0")


async def test_an_interface_that_is_taken_away_is_a_problem_by_name(config: AgentConfig) -> None:
    async with running(config) as (agent, stub), Netlink.open() as netlink:
        link = await netlink.link("om0")
        assert link
        for route in (await routes(netlink)).values():
            await netlink.remove_route(route)
        await netlink.add_address(link.index, ip_address("10.8.0.1"))
        await agent.apply()
        status = await stub.Status(agent_pb2.StatusRequest())
        assert [(problem.subject, problem.reason) for problem in status.problems] == [
            ("host", "interface om0 exists and is not ours: it has address 10.8.0.1")
        ]
        await agent.leave(force=True)


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Have a UDP port be somebody else's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", port))
        yield


async def test_a_port_that_is_taken_is_named(config: AgentConfig) -> None:
    check_host(config)
    check_ports(config, Mode.SEALED)
    with taken(51820), pytest.raises(PortInUseError, match="UDP port 51820 is in use"):
        check_ports(config, Mode.SEALED)
    with taken(7001), pytest.raises(PortInUseError, match="UDP port 7001 is in use"):
        check_ports(replace(config, port=7000, lanes=2), Mode.PLAIN)


async def test_a_host_may_be_in_those_networks_whose_port_is_free(config: AgentConfig) -> None:
    assert possible_modes(config) == (Mode.PLAIN, Mode.SEALED)
    with taken(51820):
        assert possible_modes(config) == (Mode.PLAIN,)
        with taken(6081), pytest.raises(PortInUseError, match="UDP port 51820 is in use"):
            possible_modes(config)
        assert possible_modes(replace(config, port=7000)) == (Mode.PLAIN, Mode.SEALED)


async def test_a_sealed_network(config: AgentConfig) -> None:
    """The fastpath gets this host's key, and the path says how packets travel."""
    async with running(config) as (agent, stub):
        items = members(2, 3) | signed(replace(NETWORK, mode=Mode.SEALED, serial=2))
        agent.replica.receive(snapshot(6, items)[0])
        assert await agent.apply() == ()
        given = await agent.fastpath.applied()
        assert given
        assert given.private_key == agent.identity.keys.noise.private_bytes_raw()
        assert given.port == 51820
        by_name = agent_pb2.PingRequest(peer="host2", count=1, timeout_ms=500)
        [reply] = [reply async for reply in stub.Ping(by_name)]
        assert reply.path.startswith("sealed wireguard to ")
        status = await stub.Status(agent_pb2.StatusRequest())
        assert [(peer.mode, peer.last_handshake_seconds) for peer in status.peers] == [
            (mesh_pb2.MODE_SEALED, -1)
        ] * 2
        await agent.leave(force=True)


async def test_a_stock_wireguard_peer_is_asked_by_its_address(config: AgentConfig) -> None:
    async with running(config) as (agent, stub):
        phone = node(2, serial=11, kind=Kind.WIREGUARD)
        agent.replica.receive(snapshot(6, members(2, 3) | signed(phone))[0])
        assert await agent.apply() == ()
        [reply] = [
            reply async for reply in stub.Ping(agent_pb2.PingRequest(peer="host2", count=1, timeout_ms=50))
        ]
        assert reply.path == "ICMP echo through om0, not answered"
        status = await stub.Status(agent_pb2.StatusRequest())
        assert [peer.kind for peer in status.peers] == [mesh_pb2.KIND_WIREGUARD, mesh_pb2.KIND_AGENT]
        await agent.leave(force=True)


async def test_a_node_record_of_another_root_is_a_damaged_membership(config: AgentConfig) -> None:
    state = StateDir(config.state_dir)
    kept = identity()
    state.save_identity(replace(kept, membership=replace(kept.membership, node=b"")))
    async with Netlink.open() as netlink:
        with pytest.raises(CorruptStateError, match=r"membership\.json is damaged: its records"):
            Agent(config, state, state.identity(), netlink)


def test_a_machine_is_told_from_another_without_its_machine_id() -> None:
    plain = host_id(AgentConfig())
    assert plain == host_id(AgentConfig())
    assert len(plain) == 64
    assert host_id(AgentConfig(host_id="vm7")) == "vm7"


async def test_an_interface_of_another_kind_is_never_removed(config: AgentConfig) -> None:
    async with Netlink.open() as netlink:
        ip("link", "add", config.interface, "type", "bridge")
        await netlink.delete_tun(config.interface)
        assert await netlink.link(config.interface)
        ip("link", "delete", config.interface)
        await netlink.delete_tun(config.interface)
