"""What meshctl gets to hear, over a real unix socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from overmesh import rpc
from overmesh.controller.daemon import running
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.errors import InvalidError, NotFoundError, OvermeshError, StoreCorruptError
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import Client, Host, client, config
from tests.unit.controller.test_watch import Watcher, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = config(tmp_path)
    async with running(settings) as controller, client(settings, controller) as talking:
        yield World(controller, talking)


async def refusal(call: Any) -> OvermeshError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return rpc.raised(raised.value, "controller")


async def nodes(here: Client, **said: Any) -> list[admin_pb2.Node]:
    return list((await here.admin.ListNodes(admin_pb2.ListNodesRequest(**said))).nodes)


async def test_the_whole_life_of_a_token(world: World) -> None:
    admin = world.client.admin
    made = await admin.CreateToken(admin_pb2.CreateTokenRequest(ttl_seconds=60, uses=2, tags=["rack"]))
    secret = JoinToken.parse(made.secret_token)
    assert secret.root == world.controller.root.public_key
    assert made.join_line == f"meshctl join 127.0.0.1:{world.client.join_port} --token {made.secret_token}"
    assert (made.token.network, made.token.uses_left, made.token.unlimited) == ("mesh", 2, False)
    assert made.token.expires - made.token.created == 60
    await world.client.joined(Host("a"), secret)
    (listed,) = (await admin.ListTokens(admin_pb2.ListTokensRequest())).tokens
    assert (listed.id, listed.uses_left, listed.revoked, list(listed.tags)) == (secret.id, 1, False, ["rack"])
    await admin.RevokeToken(admin_pb2.RevokeTokenRequest(id=secret.id))
    (listed,) = (await admin.ListTokens(admin_pb2.ListTokensRequest(network="mesh"))).tokens
    assert listed.revoked
    error = await refusal(world.client.join.Join(Host("b").request(secret)))
    assert (type(error).__name__, error.fix) == ("TokenError", "ask for a new one: `meshctl token create`")


async def test_nodes_with_all_that_is_known_of_them(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    (node,) = await nodes(world.client)
    assert (node.id, node.name, node.online, node.last_seen) == (host.id, "a", False, 0)
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    (node,) = await nodes(world.client, node="a")
    assert (node.online, node.acked_revision, node.in_step) == (True, 0, False)
    await mesh.Report(
        mesh_pb2.ReportRequest(endpoints=[mesh_pb2.Endpoint(address="192.0.2.7", port=6081)], host_id="one")
    )
    health = mesh_pb2.Health(backend="tun", backend_reason="nothing faster here", mtu=1400)
    await watcher.ack(health=health)
    await world.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=5000))
    (node,) = await nodes(world.client, node=host.id)
    assert (node.acked_revision, node.in_step, node.version) == (watcher.revision, True, "test")
    assert (node.backend, node.backend_reason, node.mtu) == ("tun", "nothing faster here", 1400)
    assert [place.address for place in node.endpoints] == ["192.0.2.7"]
    assert len(node.addresses) == 2


async def test_presence_is_in_the_store_while_the_agent_is_there(world: World) -> None:
    host = Host("a")
    mesh = await world.client.joined(host)
    mirror, key = world.controller.mirror, keys.presence("mesh", host.id)

    async def written(there: bool) -> None:
        async with asyncio.timeout(5):
            while bool(mirror.key(key)) is not there:
                await mirror.reached(mirror.revision + 1)

    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await written(True)
    kv = mirror.key(key)
    assert kv is not None
    assert kv.lease
    watcher.call.cancel()
    await written(False)


async def test_an_unreadable_record_is_listed_as_such_and_can_be_removed(world: World) -> None:
    await world.client.joined(Host("a"))
    await world.controller.mirror._store.txn([], [Put(keys.node("mesh", "bad"), b"made up")])
    await world.client.token()
    bad, good = await nodes(world.client)
    assert (bad.id, bad.name, good.name) == ("bad", "", "a")
    assert [problem.reason for problem in bad.problems] == ["unreadable record: not a signed record"]
    await world.client.admin.RemoveNode(admin_pb2.RemoveNodeRequest(node="bad"))
    assert [node.name for node in await nodes(world.client)] == ["a"]


async def test_removing_tells_what_was_removed_and_can_be_waited_for(world: World) -> None:
    host = Host("a")
    await world.client.joined(host)
    stayer = await world.client.joined(Host("b"))
    watcher = await Watcher(stayer.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    admin = world.client.admin
    reply = await admin.RemoveNode(admin_pb2.RemoveNodeRequest(network="mesh", node="A"))
    assert (reply.node.name, reply.node.id) == ("a", host.id)
    waiting = asyncio.ensure_future(
        admin.Wait(admin_pb2.WaitRequest(revision=reply.revision, timeout_ms=5000))
    )
    await watcher.receive()
    assert not waiting.done()
    await watcher.ack()
    done = await waiting
    assert (done.converged, done.revision, done.agents) == (True, reply.revision, 1)


async def test_waiting_for_a_revision_of_something_else(world: World) -> None:
    """Other networks and tokens take revisions that this network's agents never see."""
    mesh = await world.client.joined(Host("a"))
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    await world.client.admin.CreateNetwork(admin_pb2.CreateNetworkRequest(name="blue"))
    head = world.controller.mirror.revision
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(revision=head, timeout_ms=5000))
    assert reply.converged


async def test_waiting_in_vain_says_why(world: World) -> None:
    future = world.controller.mirror.revision + 100
    reply = await world.client.admin.Wait(admin_pb2.WaitRequest(revision=future, timeout_ms=50))
    assert not reply.converged
    [behind] = reply.behind
    assert behind.name == f"controller 127.0.0.1:{world.client.mesh_port}"


async def test_networks(world: World) -> None:
    admin = world.client.admin
    made = await admin.CreateNetwork(admin_pb2.CreateNetworkRequest(name="blue", mtu=1400))
    assert (made.network.number, made.network.mode, made.network.mtu) == (2, mesh_pb2.MODE_SEALED, 1400)
    await world.client.joined(Host("a"))
    networks = (await admin.ListNetworks(admin_pb2.ListNetworksRequest())).networks
    assert [(network.name, network.nodes) for network in networks] == [("blue", 0), ("mesh", 1)]
    assert list(networks[1].ranges) == ["10.9.0.0/16", "fd00:9::/64"]


async def test_a_host_joins_the_network_of_its_token(world: World) -> None:
    await world.client.admin.CreateNetwork(admin_pb2.CreateNetworkRequest(name="blue"))
    host = Host("a")
    mesh = await world.client.joined(host, await world.client.token(network="blue"))
    watcher = await Watcher(mesh.Watch()).hello()
    await watcher.receive()
    assert watcher.members == {"network", f"node/{host.id}", f"endpoints/{host.id}"}
    assert await nodes(world.client) == []
    (node,) = await nodes(world.client, network="blue")
    assert node.addresses[0].startswith("10.77.")


async def test_a_network_record_that_is_garbage_does_not_stop_the_listing(world: World) -> None:
    puts = [Put(keys.network(name), b"made up") for name in ("mesh", "other")]
    result = await world.controller.mirror._store.txn([], puts)
    await world.controller.mirror.reached(result.revision)
    with pytest.raises(StoreCorruptError, match="the record of network other can't be used: not a signed"):
        _ = world.controller.mirror.view("other").network
    await world.client.joined(Host("a"))  # the genuine record of mesh is known
    networks = (await world.client.admin.ListNetworks(admin_pb2.ListNetworksRequest())).networks
    assert [(network.name, network.number) for network in networks] == [("mesh", 1), ("other", 0)]
    reply = await world.client.admin.ListNodes(admin_pb2.ListNodesRequest())
    assert [(problem.subject, problem.reason) for problem in reply.problems] == [
        ("network", "not a signed record")
    ]


@pytest.mark.parametrize(
    ("call", "request_", "error"),
    [
        ("ListNodes", admin_pb2.ListNodesRequest(network="nowhere"), NotFoundError),
        ("ListNodes", admin_pb2.ListNodesRequest(node="nobody"), NotFoundError),
        ("RemoveNode", admin_pb2.RemoveNodeRequest(node="nobody"), NotFoundError),
        ("RevokeToken", admin_pb2.RevokeTokenRequest(id="x"), NotFoundError),
        ("CreateToken", admin_pb2.CreateTokenRequest(network="nowhere"), NotFoundError),
        ("CreateNetwork", admin_pb2.CreateNetworkRequest.FromString(b"\x0a\x01b\x18\x07"), InvalidError),
        ("Wait", admin_pb2.WaitRequest(network="nowhere"), NotFoundError),
    ],
)
async def test_refusals_keep_their_class_and_fix(
    world: World, call: str, request_: Any, error: type[OvermeshError]
) -> None:
    refused = await refusal(getattr(world.client.admin, call)(request_))
    assert type(refused) is error
    assert refused.fix


async def test_what_nobody_expected_is_logged_and_not_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(world.controller.mirror, "_views", None)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.client.admin.ListNetworks(admin_pb2.ListNetworksRequest())
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "NoneType" not in (raised.value.details() or "")
    assert "TypeError" in caplog.text


async def test_health_on_every_port(world: World) -> None:
    here, root = world.controller.listening, grpc.ssl_channel_credentials(world.client.root_pem)
    for channel, service in (
        (world.client._kept(grpc.aio.insecure_channel(f"unix:{here.socket}")), "overmesh.admin.v1.Admin"),
        (world.client._secure(here.join_port, root), "overmesh.mesh.v1.Join"),
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", service):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
