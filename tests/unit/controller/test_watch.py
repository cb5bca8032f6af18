"""The stream as an agent sees it: real servers, real mutual TLS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from overmesh import rpc
from overmesh.controller import session, watch
from overmesh.controller.agents import WOKEN_AT_ONCE, Agent, _wake
from overmesh.controller.daemon import Controller, running
from overmesh.controller.peermap import NetworkMap, Position
from overmesh.controller.session import Session
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot
from overmesh.errors import CloneError, InvalidError, OvermeshError, RemovedError, UnreachableError
from overmesh.model import Digest, node_key
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.controller.lab import Client, Host, client, config


@dataclass
class World:
    controller: Controller
    client: Client


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = config(tmp_path)
    async with running(settings) as controller, client(settings, controller) as talking:
        yield World(controller, talking)


@dataclass
class Watcher:
    """An agent by hand: it takes in a bundle and acks only when told to."""

    call: Any
    items: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0

    async def hello(
        self, revision: int = 0, digest: bytes = b"", host_id: str = "one", **said: Any
    ) -> "Watcher":
        hello = mesh_pb2.Hello(revision=revision, digest=digest, host_id=host_id, version="test", **said)
        await self.call.write(mesh_pb2.WatchRequest(hello=hello))
        return self

    async def receive(self) -> str:
        async with asyncio.timeout(10):
            return self.take(await self.call.read())

    def take(self, reply: mesh_pb2.WatchReply) -> str:
        kind = reply.WhichOneof("body")
        body = getattr(reply, kind)
        if kind == "snapshot":
            self.items = {}
        if kind in ("snapshot", "delta"):
            for key in getattr(body, "removed", ()):
                self.items.pop(key, None)
            self.items |= {item.key: item.signed for item in body.items}
            self.revision = getattr(body, "to_revision", 0) or body.revision
            assert body.digest == self.digest
        return str(kind)

    @property
    def members(self) -> set[str]:
        """The keys that it holds of the network and of its nodes."""
        return {key for key in self.items if key.startswith(("network", "node/", "endpoints/"))}

    @property
    def digest(self) -> bytes:
        return Digest.of(self.items).to_bytes()

    async def ack(self, digest: bytes | None = None, **other: Any) -> None:
        ack = mesh_pb2.Ack(revision=self.revision, digest=digest or self.digest, **other)
        await self.call.write(mesh_pb2.WatchRequest(ack=ack))

    async def error(self) -> OvermeshError:
        try:
            async with asyncio.timeout(10):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            return rpc.raised(error, "controller")
        pytest.fail("the stream ended well")


async def test_a_first_snapshot_then_deltas(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    watcher = await Watcher(mesh.Watch()).hello()
    assert await watcher.receive() == "snapshot"
    assert watcher.members == {"network", f"node/{host.id}", f"endpoints/{host.id}"}
    await watcher.ack()
    other = Host("b")
    await world.client.joined(other)
    assert await watcher.receive() == "delta"
    assert node_key(other.id) in watcher.items
    await watcher.ack()
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))
    assert (reply.converged, reply.agents) == (True, 1)


async def test_resuming_by_revision_after_the_controller_was_restarted(tmp_path: Path) -> None:
    settings, host = config(tmp_path), Host("a")
    async with running(settings) as controller, client(settings, controller) as talking:
        reply = await talking.join.Join(host.request(await talking.token()))
        watcher = await Watcher(talking.mesh(host, reply.certificate).Watch()).hello()
        await watcher.receive()
        await watcher.ack()
        await talking.token()  # so that the store's revision moves on
    here = controller.listening
    settings = replace(settings, join_port=here.join_port, mesh_port=here.mesh_port)
    async with running(settings) as controller, client(settings, controller) as talking:
        again = Watcher(talking.mesh(host, reply.certificate).Watch(), watcher.items)
        await again.hello(watcher.revision, watcher.digest)
        assert await again.receive() == "delta"
        assert again.items == watcher.items
        await again.ack()
        assert (await talking.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))).converged


async def test_who_is_in_step_hears_so_at_once(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    again = Watcher(mesh.Watch(), watcher.items)
    await again.hello(watcher.revision, watcher.digest)
    assert await again.receive() == "heartbeat"


async def test_one_bundle_in_flight_and_the_rest_collapses(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    for name in ("b", "c", "d"):
        await world.client.joined(Host(name))
    reading = asyncio.ensure_future(watcher.call.read())
    await asyncio.wait({reading}, timeout=0.3)
    assert not reading.done()
    await watcher.ack()
    assert watcher.take(await reading) == "delta"
    assert len(watcher.members) == 1 + 2 * 4
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=100))
    assert not reply.converged
    assert [behind.name for behind in reply.behind] == ["a"]
    assert 0 < reply.behind[0].acked_revision < watcher.revision


async def test_a_wrong_digest_gets_a_snapshot_and_is_named(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack(digest=b"wrong")
    assert await watcher.receive() == "snapshot"
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=1))
    assert "wrong digest 1 time" in reply.behind[0].reason
    await watcher.ack()
    assert (await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))).converged


async def test_an_ack_that_never_comes_ends_the_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ACK_TIMEOUT", 0.2)
    mesh = await world.client.joined(Host("a"))
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    assert isinstance(await watcher.error(), UnreachableError)


async def test_a_removed_node_is_told_so_now_and_later(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    await world.client.admin.RemoveNode(admin_pb2.RemoveNodeRequest(node="a"))
    assert isinstance(await watcher.error(), RemovedError)
    assert isinstance(await (await Watcher(mesh.Watch()).hello()).error(), RemovedError)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.Report(mesh_pb2.ReportRequest())
    assert isinstance(rpc.raised(raised.value, ""), RemovedError)
    await mesh.Leave(mesh_pb2.LeaveRequest())


async def test_leaving_is_a_removal(world: World) -> None:
    a, b = Host("a"), Host("b")
    leaver, stayer = await world.client.joined(a), await world.client.joined(b)
    watcher = await Watcher(stayer.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    reply = await leaver.Leave(mesh_pb2.LeaveRequest())
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await leaver.Head(mesh_pb2.HeadRequest())
    assert isinstance(rpc.raised(raised.value, ""), RemovedError)
    assert await watcher.receive() == "delta"
    assert watcher.revision == reply.revision
    assert watcher.members == {"network", f"node/{b.id}", f"endpoints/{b.id}"}


async def test_the_newer_stream_of_a_host_takes_over(world: World) -> None:
    mesh = await world.client.joined(Host("a"))
    older = await Watcher(mesh.Watch()).hello()
    await older.receive()
    newer = await Watcher(mesh.Watch()).hello()
    assert await newer.receive() == "snapshot"
    error = await older.error()
    assert isinstance(error, UnreachableError)
    assert "newer stream" in error.cause
    await newer.ack()
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))
    assert (reply.converged, reply.agents) == (True, 1)


async def test_a_second_host_with_the_same_identity_is_refused(world: World) -> None:
    mesh = await world.client.joined(Host("a"))
    first = await Watcher(mesh.Watch()).hello(host_id="one")
    await first.receive()
    second = await Watcher(mesh.Watch()).hello(host_id="two")
    assert isinstance(await second.error(), CloneError)
    await first.ack()
    assert (await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))).converged


async def test_a_stop_is_an_error_that_agents_retry(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with AsyncExitStack() as later:
        async with running(settings) as controller:
            talking = await later.enter_async_context(client(settings, controller))
            mesh = await talking.joined(Host("a"))
            watcher = await Watcher(mesh.Watch()).hello()
            await watcher.receive()
        error = await watcher.error()
    assert isinstance(error, UnreachableError)
    assert "is stopping" in error.cause


@pytest.mark.parametrize(
    "messages",
    [
        [mesh_pb2.WatchRequest()],
        [mesh_pb2.WatchRequest(ack=mesh_pb2.Ack())],
        [mesh_pb2.WatchRequest(hello=mesh_pb2.Hello())] * 2,
        [],
    ],
)
async def test_streams_that_do_not_follow_the_protocol(world: World, messages: list[Any]) -> None:
    mesh = await world.client.joined(Host("a"))
    call = mesh.Watch()
    for message in messages:
        await call.write(message)
    if not messages:
        await call.done_writing()
    assert isinstance(await Watcher(call).error(), InvalidError)


async def test_a_stream_without_a_hello_does_not_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HELLO_TIMEOUT", 0.1)
    mesh = await world.client.joined(Host("a"))
    error = await Watcher(mesh.Watch()).error()
    assert isinstance(error, InvalidError)
    assert "no Hello" in error.cause


async def test_how_a_host_carries_packets_is_said_with_hello_and_with_every_ack(world: World) -> None:
    async def known() -> tuple[str, int]:
        await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))
        (node,) = (await world.client.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
        return node.backend, node.mtu

    mesh = await world.client.joined(Host("a"))
    watcher = await Watcher(mesh.Watch()).hello(health=mesh_pb2.Health(backend="tun", mtu=1400))
    await watcher.receive()
    await watcher.ack()
    assert await known() == ("tun", 1400)
    await watcher.ack(health=mesh_pb2.Health(backend="dpdk", mtu=9000))
    async with asyncio.timeout(10):
        while await known() != ("dpdk", 9000):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_agent_that_hangs_up_is_gone(world: World) -> None:
    mesh = await world.client.joined(Host("a"))
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack(problems=[mesh_pb2.Problem(subject="node/x", reason="forged")])
    await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))
    await watcher.call.done_writing()
    assert await watcher.call.read() is grpc.aio.EOF
    (node,) = (await world.client.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    assert not node.online
    assert (node.acked_revision, node.in_step, node.version) == (watcher.revision, False, "test")
    assert [problem.reason for problem in node.problems] == ["forged"]


async def test_only_the_host_that_is_connected_may_say_where_the_node_is(world: World) -> None:
    mesh = await world.client.joined(Host("a"))

    async def refusal(host_id: str) -> OvermeshError | None:
        here = [mesh_pb2.Endpoint(address="192.0.2.7", port=6081)]
        try:
            await mesh.Report(mesh_pb2.ReportRequest(endpoints=here, host_id=host_id))
        except grpc.aio.AioRpcError as error:
            return rpc.raised(error, "")
        return None

    assert isinstance(await refusal("one"), UnreachableError)
    watcher = await Watcher(mesh.Watch()).hello(host_id="one")
    await watcher.receive()
    assert isinstance(await refusal("two"), UnreachableError)
    assert await refusal("one") is None


async def test_garbage_in_the_store_is_passed_on_as_it_is(world: World) -> None:
    """The agents refuse it themselves, by name."""
    mesh = await world.client.joined(Host("a"))
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    await world.controller.mirror._store.txn([], [Put(keys.node("mesh", "bad"), b"\xff made up")])
    assert await watcher.receive() == "delta"
    assert watcher.items["node/bad"] == b"\xff made up"


# Who calls.


async def test_a_certificate_of_another_root_does_not_get_in(world: World) -> None:
    host = Host("a")
    await world.client.joined(host)
    forged = MeshRoot.new().issue_node(CertificateRequest.parse(host.csr()), Identity("mesh", host.id))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.client.mesh(host, forged).Report(mesh_pb2.ReportRequest())
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_no_certificate_does_not_get_in(world: World) -> None:
    world.client.join_port = world.client.mesh_port
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.client.join.Join(mesh_pb2.JoinRequest())
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_join_port_serves_join_only(world: World) -> None:
    host = Host("a")
    reply = await world.client.join.Join(host.request(await world.client.token()))
    world.client.mesh_port = world.client.join_port
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.client.mesh(host, reply.certificate).Leave(mesh_pb2.LeaveRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_certificate_alone_says_who_leaves(world: World) -> None:
    a, b = Host("a"), Host("b")
    mesh = await world.client.joined(a)
    await world.client.joined(b)
    await mesh.Leave(mesh_pb2.LeaveRequest())
    nodes = (await world.client.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    assert [node.name for node in nodes] == ["b"]


async def test_a_crowd_is_woken_in_parts_and_nobody_is_left_out() -> None:
    number = 2 * WOKEN_AT_ONCE + 1
    agents = [
        Agent(Identity("mesh", f"n{one}"), "", "", Session(NetworkMap(1, {}), Position(0, b""), 0))
        for one in range(number)
    ]
    waiting = agents[5]
    waiting.session.poll(0)
    assert waiting.session.in_flight_since is not None
    _wake(iter(agents))
    woken = []
    for _ in range(3):
        woken.append(sum(agent.wake.is_set() for agent in agents))
        await asyncio.sleep(0)
    assert woken == [WOKEN_AT_ONCE - 1, 2 * WOKEN_AT_ONCE - 1, number - 1]
    assert not waiting.wake.is_set()


async def test_a_deadline_that_moves_away_costs_no_new_timer() -> None:
    agent = Agent(Identity("mesh", "n"), "", "", Session(NetworkMap(1, {}), Position(0, b""), 0))
    agent.wake_in(0.05)
    agent.wake_in(30)
    async with asyncio.timeout(5):
        await agent.wake.wait()
    agent.wake.clear()
    agent.wake_in(30)
    agent.wake_in(0.05)
    async with asyncio.timeout(5):
        await agent.wake.wait()
    agent.wake.clear()
    agent.wake_in(0.01)
    agent.rest()
    await asyncio.sleep(0.05)
    assert not agent.wake.is_set()
