"""One machine id on two hosts: told apart by the runs of their agents, and by who comes back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.controller.daemon import running
from overmesh.controller.members import clones
from overmesh.controller.members.clones import TAKES_OVER_AFTER
from overmesh.controller.serving.caller import _CALLER, Caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust import Identity
from overmesh.errors import CloneError, InvalidError, OvermeshError, ReplacedError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.controller.lab import Client, Host, Mesh, client, config, mesh
from tests.unit.controller.test_on_etcd import target, two_controllers  # noqa: F401
from tests.unit.controller.test_watch import Watcher


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


async def comes(
    lab: Mesh, node: Host, instance: str, *, replaced: bool = False, origin: str = "192.0.2.1"
) -> OvermeshError | None:
    """Have an agent on a machine "one" open the node's stream; return why it does not get it."""
    _CALLER.set(Caller(f"node {node.id}", origin))
    identity = Identity("mesh", node.id)
    try:
        await lab.clones.check(identity, "one", instance, replaced=replaced)
    except CloneError as error:
        return error
    lab.agents.open(identity, mesh_pb2.Hello(host_id="one", instance=instance), 0)
    return None


def live(lab: Mesh, node: Host) -> str:
    agent = lab.agents.live("mesh", node.id)
    return agent.instance if agent and not agent.end else ""


async def hangs_up(lab: Mesh, node: Host) -> None:
    agent = lab.agents.live("mesh", node.id)
    assert agent
    lab.agents.close(agent)


def copies(lab: Mesh, node: Host) -> list[str]:
    return [copy.instance for copy in lab.clones.message("mesh", node.id).copies]


async def test_restarts_and_streams_that_broke_are_no_copies_and_write_nothing(lab: Mesh) -> None:
    node = await lab.joined("a")
    before = lab.mirror.revision
    for instance in ("a1", "a1", "a1", "a2", "a2", "a3"):
        assert await comes(lab, node, instance) is None
    assert (live(lab, node), copies(lab, node), lab.mirror.revision) == ("a3", [], before)


async def test_who_took_a_live_agents_stream_over_is_quarantined_and_both_are_named(
    lab: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    node = await lab.joined("a")
    assert await comes(lab, node, "a1") is None
    assert await comes(lab, node, "b1", origin="192.0.2.9") is None
    twin = lab.agents.live("mesh", node.id)
    assert twin
    assert await comes(lab, node, "a2", replaced=True) is None
    assert isinstance(twin.end, CloneError)
    assert "192.0.2.9, holds a copy of its keys and of its machine id" in twin.end.cause
    assert "systemd-machine-id-setup" in twin.end.fix
    assert live(lab, node) == "a2"
    told = lab.clones.message("mesh", node.id)
    assert [(copy.instance, getattr(copy, "from")) for copy in told.copies] == [("b1", "192.0.2.9")]
    assert "one from 192.0.2.9 holds a copy of its keys and of its machine id" in told.problems[0].reason
    assert [entry.deed.what async for entry in lab.audit.entries()][-1] == "copy quarantined"
    assert any("a copy of a node is quarantined" in record.getMessage() for record in caplog.records)


async def test_a_quarantined_twin_stays_so_and_writes_rarely(lab: Mesh) -> None:
    node = await lab.joined("a")
    for instance, replaced in (("a1", False), ("b1", False), ("a2", True)):
        await comes(lab, node, instance, replaced=replaced)
    before = lab.mirror.revision
    for _ in range(20):
        lab.clock.now += 3
        assert await comes(lab, node, "b1")
        assert await comes(lab, node, "b1", replaced=True), "whatever it says"
    assert lab.mirror.revision == before + 2
    assert await comes(lab, node, "a3") is None, "the node's own was restarted"
    identity = Identity("mesh", node.id)
    with pytest.raises(CloneError):
        lab.clones.check_own(identity, "one", "b1")
    lab.clones.check_own(identity, "one", "a3")


async def test_who_leaves_without_an_agent_is_no_node_whose_agent_is_connected(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "_NOTICED_WITHIN", 0.3)
    node = await lab.joined("a")
    identity = Identity("mesh", node.id)
    assert await comes(lab, node, "a1") is None
    await lab.clones.check_leaving(identity, "one", "a1")
    for instance in ("", "b1"):
        with pytest.raises(CloneError):
            await lab.clones.check_leaving(identity, "one", instance)


async def test_who_leaves_is_no_copy_of_its_own_agent_whose_stream_has_yet_to_end(lab: Mesh) -> None:
    node = await lab.joined("a")
    assert await comes(lab, node, "a1") is None
    leaving = asyncio.create_task(lab.clones.check_leaving(Identity("mesh", node.id), "one", ""))
    await asyncio.sleep(0.2)
    assert not leaving.done()
    await hangs_up(lab, node)
    await leaving


async def test_a_twin_takes_over_from_a_host_that_has_gone(lab: Mesh) -> None:
    node = await lab.joined("a")
    for instance, replaced in (("a1", False), ("b1", False), ("a2", True)):
        await comes(lab, node, instance, replaced=replaced)
    await hangs_up(lab, node)
    lab.clock.now += TAKES_OVER_AFTER - 1
    assert await comes(lab, node, "b1")
    lab.clock.now += 1
    assert await comes(lab, node, "b1") is None
    assert copies(lab, node) == []
    assert await comes(lab, node, "a3") is None, "perhaps it was restarted"
    assert await comes(lab, node, "b2", replaced=True) is None
    assert copies(lab, node) == ["a3"], "now that one is the copy"


async def test_of_three_one_stays(lab: Mesh) -> None:
    node = await lab.joined("a")
    for instance in ("a1", "b1", "c1"):
        assert await comes(lab, node, instance) is None
    assert await comes(lab, node, "a2", replaced=True) is None
    assert copies(lab, node) == ["c1"]
    assert await comes(lab, node, "b2", replaced=True) is None
    assert sorted(copies(lab, node)) == ["a2", "c1"]
    assert live(lab, node) == "b2"


async def test_an_older_agent_is_not_accused(lab: Mesh) -> None:
    node = await lab.joined("a")
    assert await comes(lab, node, "a1") is None
    assert await comes(lab, node, "") is None
    assert await comes(lab, node, "a2", replaced=True) is None
    assert await comes(lab, node, "") is None
    assert copies(lab, node) == []


async def test_who_can_write_to_the_store_can_not_quarantine(lab: Mesh) -> None:
    node, other = await lab.joined("a"), await lab.joined("b")
    for instance, replaced in (("a1", False), ("b1", False), ("a2", True)):
        await comes(lab, node, instance, replaced=replaced)
    (item, kv), *_ = lab.mirror.held("copies", "mesh").items()
    forged = keys.copy("mesh", other.id, item.partition(".")[2])
    result = await lab.store.txn([], [Put(forged, kv.value)])
    await lab.mirror.reached(result.revision)
    assert await comes(lab, other, "b1") is None


@pytest.mark.parametrize("instance", ["x", "A", "a" * 65, "a\n", "a\x1b[2J"])
async def test_an_instance_that_no_agent_makes(lab: Mesh, instance: str) -> None:
    node = await lab.joined("a")
    with pytest.raises(InvalidError, match="can't tell one run of an agent from others"):
        await comes(lab, node, instance)


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"controller": "other"}', b"\xff"])
async def test_a_presence_that_names_no_instance_replaces_nobody(lab: Mesh, value: bytes) -> None:
    """As an older controller writes it."""
    node = await lab.joined("a")
    await comes(lab, node, "a1")
    lab.presence._changed.clear()
    result = await lab.store.txn([], [Put(keys.presence("mesh", node.id), value)])
    await lab.mirror.reached(result.revision)
    assert live(lab, node) == "a1"


# Over the wire.


async def test_only_the_instance_that_is_connected_may_report(tmp_path: Path) -> None:
    settings, host = config(tmp_path), Host("a")
    async with running(settings) as controller, client(settings, controller) as talking:
        mesh = await talking.joined(host)
        first = await Watcher(mesh.Watch()).hello(instance="a1")
        await first.receive()
        second = await Watcher(mesh.Watch()).hello(instance="b1")
        await second.receive()
        assert isinstance(await first.error(), ReplacedError)
        view = controller.mirror.view("mesh")
        before = view.endpoints(host.id)
        late = await _reports(mesh, "a1")
        assert isinstance(late, ReplacedError)
        assert view.endpoints(host.id) == before
        assert await _reports(mesh, "b1") is None
        assert view.endpoints(host.id) != before


async def _reports(mesh: Any, instance: str) -> OvermeshError | None:
    here = [mesh_pb2.Endpoint(address="192.0.2.66", port=6081)]
    try:
        await mesh.Report(mesh_pb2.ReportRequest(endpoints=here, host_id="one", instance=instance))
    except grpc.aio.AioRpcError as error:
        return rpc.raised(error, "")
    return None


async def listed(talking: Client) -> Any:
    (node,) = (await talking.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    return node


async def test_a_restarted_controller_remembers_the_twin(tmp_path: Path) -> None:
    settings, host = config(tmp_path), Host("a")
    async with running(settings) as controller, client(settings, controller) as talking:
        reply = await talking.join.Join(host.request(await talking.token()))
        mesh = talking.mesh(host, reply.certificate)
        for said in ({"instance": "a1"}, {"instance": "b1"}, {"instance": "a2", "replaced": True}):
            await (await Watcher(mesh.Watch()).hello(**said)).receive()
        here = controller.listening
    settings = replace(settings, join_port=here.join_port, mesh_port=here.mesh_port)
    async with running(settings) as controller, client(settings, controller) as talking:
        mesh = talking.mesh(host, reply.certificate)
        own = await Watcher(mesh.Watch()).hello(instance="a2")
        await own.receive()
        twin = await Watcher(mesh.Watch()).hello(instance="b1")
        assert isinstance(await twin.error(), CloneError)
        assert [copy.instance for copy in (await listed(talking)).copies] == ["b1"]


@pytest.mark.parametrize("returns_to", [0, 1])
async def test_twins_at_two_controllers(target: str, tmp_path: Path, returns_to: int) -> None:  # noqa: F811
    """Wherever the first comes back."""
    async with two_controllers(target, tmp_path) as [(_, one), (_, two)]:
        host = Host("a")
        reply = await one.join.Join(host.request(await one.token()))
        meshes = [each.mesh(host, reply.certificate) for each in (one, two)]
        first = await Watcher(meshes[0].Watch()).hello(instance="a1")
        await first.receive()
        await asyncio.sleep(0.5)  # until that is written
        twin = await Watcher(meshes[1].Watch()).hello(instance="b1")
        await twin.receive()
        assert isinstance(await first.error(), ReplacedError)
        again = await Watcher(meshes[returns_to].Watch()).hello(instance="a2", replaced=True)
        await again.receive()
        assert isinstance(await twin.error(), CloneError)
        for mesh in meshes:
            assert isinstance(await (await Watcher(mesh.Watch()).hello(instance="b1")).error(), CloneError)
        for talking in (one, two):
            node = await listed(talking)
            assert [copy.instance for copy in node.copies] == ["b1"]
            assert [getattr(copy, "from") for copy in node.copies] == ["127.0.0.1"]
            assert [problem.subject for problem in node.problems] == ["host"]
            assert node.online


async def test_an_agent_that_moves_to_another_controller_is_not_replaced(
    target: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    async with two_controllers(target, tmp_path) as [(_, one), (_, two)]:
        host = Host("a")
        reply = await one.join.Join(host.request(await one.token()))
        left = await Watcher(one.mesh(host, reply.certificate).Watch()).hello(instance="a1")
        await left.receive()
        now = await Watcher(two.mesh(host, reply.certificate).Watch()).hello(instance="a1")
        await now.receive()
        ends = [asyncio.ensure_future(watcher.error()) for watcher in (left, now)]
        ended, _ = await asyncio.wait(ends, timeout=1)
        assert not ended
        for end in ends:
            end.cancel()
        assert (await listed(one)).copies == []
