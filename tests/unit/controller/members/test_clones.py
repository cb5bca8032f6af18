"""One key on two hosts: exactly one of them is the node, and the other is named."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from overmesh.controller.members.clones import TAKES_OVER_AFTER, Clones
from overmesh.controller.members.hosts import TOLD_FOR
from overmesh.controller.serving.caller import _CALLER, Caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import Delete, Put
from overmesh.controller.trust import Identity
from overmesh.errors import CloneError, InvalidError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.controller.lab import ROOT, Host, Mesh, mesh
from tests.unit.controller.test_on_etcd import in_step, target, two_controllers  # noqa: F401
from tests.unit.controller.test_watch import Watcher


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


async def comes(lab: Mesh, node: Host, host_id: str, origin: str = "192.0.2.9") -> CloneError | None:
    """Have a host ask for the node's stream; return why it does not get it."""
    _CALLER.set(Caller(f"node {node.id}", origin))
    try:
        await lab.clones.check(Identity("mesh", node.id), host_id)
    except CloneError as error:
        return error
    return None


async def connect(lab: Mesh, node: Host, *, there: bool = True) -> None:
    """Say that the node is, or is not, connected at some controller."""
    key = keys.presence("mesh", node.id)
    result = await lab.store.txn([], [Put(key, b"{}") if there else Delete(key)])
    await lab.mirror.reached(result.revision)


def seen(lab: Mesh, node: Host) -> admin_pb2.Node:
    return lab.clones.message("mesh", node.id)


async def test_the_nodes_own_host_comes_without_a_transaction(lab: Mesh) -> None:
    node = await lab.joined("a")
    before = lab.mirror.revision
    for _ in range(3):
        assert await comes(lab, node, "one") is None
    assert lab.mirror.revision == before
    assert seen(lab, node).host_id == "one"


async def test_a_copy_is_quarantined_and_named_beside_the_nodes_own_host(lab: Mesh) -> None:
    node = await lab.joined("a")
    await connect(lab, node)
    error = await comes(lab, node, "two")
    assert error
    assert "another host is connected as this node" in error.cause
    assert "one from elsewhere; this one, two from 192.0.2.9, holds a copy" in error.cause
    assert await comes(lab, node, "one") is None
    told = seen(lab, node)
    (copy,) = told.copies
    assert (copy.host_id, getattr(copy, "from"), copy.since) == ("two", "192.0.2.9", lab.clock.now)
    assert [problem.subject for problem in told.problems] == ["host"]
    assert "two from 192.0.2.9 holds a copy of its keys and is quarantined; its own is one" in (
        told.problems[0].reason
    )
    entries = [entry async for entry in lab.audit.entries()]
    assert (entries[-1].deed.what, entries[-1].deed.details) == (
        "copy quarantined",
        {"host": "two", "before": "one"},
    )


async def test_a_copy_that_keeps_coming_writes_rarely(lab: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    node = await lab.joined("a")
    await connect(lab, node)
    before = lab.mirror.revision
    for _ in range(20):
        lab.clock.now += 3
        assert await comes(lab, node, "two")
    assert lab.mirror.revision == before + 2
    (first, _) = [record for record in caplog.records if "quarantined" in record.getMessage()]
    assert "one from elsewhere; this one, two from 192.0.2.9" in vars(first)["reason"]
    assert (vars(first)["node"], vars(first)["id"]) == ("a", node.id)


async def test_a_copy_does_not_take_over_while_the_node_is_away_for_a_moment(lab: Mesh) -> None:
    node = await lab.joined("a")
    await connect(lab, node)
    assert await comes(lab, node, "two")
    await connect(lab, node, there=False)
    lab.clock.now += TAKES_OVER_AFTER - 1
    assert await comes(lab, node, "two")
    assert await comes(lab, node, "one") is None
    lab.clock.now += 1
    assert await comes(lab, node, "two") is None
    assert seen(lab, node).host_id == "two"
    assert not seen(lab, node).copies
    assert await comes(lab, node, "one"), "now it is the copy"


async def test_a_copy_that_has_gone_is_told_of_for_a_while_and_forgotten(lab: Mesh) -> None:
    node = await lab.joined("a")
    await connect(lab, node)
    await comes(lab, node, "two")
    lab.clock.now += TOLD_FOR - 1
    await lab.clones.sweep()
    assert seen(lab, node).copies
    lab.clock.now += 2
    assert not seen(lab, node).copies
    await lab.clones.sweep()
    assert not lab.mirror.held("copies", "mesh")


async def test_another_machine_is_the_node_when_nobody_else_is(lab: Mesh) -> None:
    """As when the machine id was made anew."""
    node = await lab.joined("a")
    assert await comes(lab, node, "two") is None
    assert seen(lab, node).host_id == "two"


async def test_who_was_just_taken_is_there_before_its_presence_is_written(lab: Mesh) -> None:
    node = await lab.joined("a")
    other = Clones(lab.mirror, ROOT, lambda *_: None, lambda *_: "", lab.clock)
    results = await asyncio.gather(
        lab.clones.check(Identity("mesh", node.id), "two"),
        other.check(Identity("mesh", node.id), "three"),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(CloneError) == 1
    lab.clock.now += 60
    loser = "two" if isinstance(results[0], CloneError) else "three"
    assert await comes(lab, node, loser)


@pytest.mark.parametrize("between", [True, False])
async def test_a_move_planned_before_another_does_not_hold(lab: Mesh, between: bool) -> None:
    """As when another controller binds the node in between: the transaction itself has to find out."""
    node = await lab.joined("a")
    await comes(lab, node, "one")
    lab.clock.now += TAKES_OVER_AFTER
    planned = lab.clones._plan("mesh", node.id, "two", "")
    assert planned
    if between:
        assert await comes(lab, node, "three") is None
    result = await lab.store.txn(planned.compares, planned.ops)
    assert result.succeeded is not between


async def test_removal_forgets_the_host(lab: Mesh) -> None:
    node = await lab.joined("a")
    await lab.revocations.remove("mesh", node.id)
    assert not lab.mirror.held("hosts", "mesh")


async def test_who_can_write_to_the_store_can_not_bind_a_node(lab: Mesh) -> None:
    node, other = await lab.joined("a"), await lab.joined("b")
    bound = lab.mirror.key(keys.host("mesh", other.id))
    assert bound
    forged = bound.value.replace(b'"host_id":"one"', b'"host_id":"two"')
    result = await lab.store.txn([], [Put(keys.host("mesh", node.id), forged)])
    await lab.mirror.reached(result.revision)
    assert seen(lab, node).host_id == ""
    assert await comes(lab, node, "one") is None
    assert seen(lab, node).host_id == "one"


@pytest.mark.parametrize("host_id", ["x" * 257, "a\x1b[2J", "a\n"])
async def test_a_host_id_that_can_not_be_shown(lab: Mesh, host_id: str) -> None:
    node = await lab.joined("a")
    with pytest.raises(InvalidError, match=r"a host id of \d+ characters"):
        await lab.clones.check(Identity("mesh", node.id), host_id)
    with pytest.raises(InvalidError):
        await lab.joins.join(Host("b", host_id=host_id).application(await lab.token()))


@pytest.mark.parametrize("host_id", ["", "x" * 256, "ü/../."])
async def test_any_other_host_id(lab: Mesh, host_id: str) -> None:
    node = await lab.joined("a")
    await connect(lab, node)
    assert await comes(lab, node, host_id)
    await connect(lab, node, there=False)
    lab.clock.now += TAKES_OVER_AFTER
    assert await comes(lab, node, host_id) is None
    assert await comes(lab, node, host_id) is None


@pytest.mark.parametrize("there", [True, False])
async def test_a_copy_does_not_take_the_node_away(lab: Mesh, there: bool) -> None:
    node = await lab.joined("a")
    identity = Identity("mesh", node.id)
    await connect(lab, node, there=there)
    with pytest.raises(CloneError):
        await lab.clones.check_leaving(identity, "two", "")
    await lab.clones.check_leaving(identity, "one", "")
    await lab.clones.check_leaving(identity, "", "")


async def test_a_host_that_was_taken_for_the_node_may_leave_as_it(lab: Mesh) -> None:
    node = await lab.joined("a")
    assert await comes(lab, node, "two") is None
    await lab.clones.check_leaving(Identity("mesh", node.id), "two", "")
    with pytest.raises(CloneError):
        await lab.clones.check_leaving(Identity("mesh", node.id), "one", "")


# Two controllers.


async def test_copies_at_two_controllers(target: str, tmp_path: Path) -> None:  # noqa: F811
    async with two_controllers(target, tmp_path) as [(first, one), (second, two)]:
        host = Host("a")
        reply = await one.join.Join(host.request(await one.token()))
        own = await Watcher(one.mesh(host, reply.certificate).Watch()).hello()
        await own.receive()
        async with asyncio.timeout(5):
            while not second.mirror.key(keys.presence("mesh", host.id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        copy = await Watcher(two.mesh(host, reply.certificate).Watch()).hello(host_id="two")
        assert isinstance(await copy.error(), CloneError)
        await in_step(first, second)
        for talking in (one, two):
            (node,) = (await talking.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
            assert (node.host_id, node.connected_from) == ("one", "127.0.0.1")
            assert [(each.host_id, getattr(each, "from")) for each in node.copies] == [("two", "127.0.0.1")]
            assert [problem.subject for problem in node.problems] == ["host"]


async def test_a_stream_that_has_yet_to_end_does_not_keep_out_who_is_the_node_now(lab: Mesh) -> None:
    """It hangs in a write, while another controller has bound the node to another host."""
    node = await lab.joined("a")
    identity = Identity("mesh", node.id)
    older = lab.agents.open(identity, mesh_pb2.Hello(host_id="one"), 0)
    bound = await lab.mirror._store.txn([], [lab.clones.bound("mesh", node.id, "two", claimed=True)])
    await lab.mirror.reached(bound.revision)
    await lab.clones.check(identity, "two")
    newer = lab.agents.open(identity, mesh_pb2.Hello(host_id="two"), 0)
    assert isinstance(older.end, CloneError)
    assert (newer.end, lab.agents.live("mesh", node.id)) == (None, newer)


async def test_two_that_come_at_once(target: str, tmp_path: Path) -> None:  # noqa: F811
    async with two_controllers(target, tmp_path) as [(_, one), (_, two)]:
        for number in range(5):
            host = Host(f"n{number}")
            reply = await one.join.Join(host.request(await one.token()))
            streams = [
                Watcher(each.mesh(host, reply.certificate).Watch()).hello(host_id=name)
                for each, name in ((one, "two"), (two, "three"))
            ]
            watchers = await asyncio.gather(*streams)
            ends = [asyncio.ensure_future(watcher.error()) for watcher in watchers]
            done, waiting = await asyncio.wait(ends, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            assert isinstance(done.pop().result(), CloneError)
            (stays,) = waiting
            await asyncio.sleep(0.3)
            assert not stays.done()
            stays.cancel()


async def test_the_stream_of_a_host_that_is_no_longer_the_node_ends(
    target: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Another controller took the copy for the node, as nobody said that the node is there."""
    async with two_controllers(target, tmp_path) as [(first, one), (second, two)]:
        host = Host("a")
        reply = await one.join.Join(host.request(await one.token()))
        own = await Watcher(one.mesh(host, reply.certificate).Watch()).hello()
        await own.receive()
        presence = keys.presence("mesh", host.id)
        async with asyncio.timeout(5):
            while not second.mirror.key(presence):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        result = await first.mirror._store.txn([], [Delete(presence)])  # its lease ended
        await second.mirror.reached(result.revision)
        copy = await Watcher(two.mesh(host, reply.certificate).Watch()).hello(host_id="two")
        assert await copy.receive() == "snapshot"
        assert isinstance(await own.error(), CloneError)
