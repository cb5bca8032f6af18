"""Whole controllers on a real etcd: one, two at once, and while etcd is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from overmesh.config import ControllerConfig
from overmesh.controller import mirror as mirror_module
from overmesh.controller.audit import Audit
from overmesh.controller.daemon import Controller, running
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys, open_store
from overmesh.controller.store.base import Delete, Put, Store, absent, unchanged
from overmesh.errors import ConfigError, StateError, StoreUnavailableError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.etcd import cluster, free_port
from tests.unit.controller.lab import ROOT, START, Client, Host, client, config, share_root
from tests.unit.controller.store.backends import EtcdBackend
from tests.unit.controller.test_watch import Watcher


@pytest.fixture
def target(tmp_path: Path) -> str:
    return EtcdBackend(tmp_path).target


@asynccontextmanager
async def controller_on(target: str, path: Path) -> AsyncIterator[tuple[Controller, Client]]:
    settings = config(path, store=target)
    async with running(settings) as controller, client(settings, controller) as talking:
        yield controller, talking


@asynccontextmanager
async def two_controllers(target: str, path: Path) -> AsyncIterator[list[tuple[Controller, Client]]]:
    """Run two with one root and one store."""
    async with AsyncExitStack() as undo:
        first = await undo.enter_async_context(controller_on(target, path / "one"))
        share_root(path, path / "two" / "state")
        yield [first, await undo.enter_async_context(controller_on(target, path / "two"))]


async def in_step(*controllers: Controller) -> None:
    """Return when all mirrors show the same."""
    async with asyncio.timeout(10):
        while len({controller.mirror.revision for controller in controllers}) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_join_map_leave(target: str, tmp_path: Path) -> None:
    async with controller_on(target, tmp_path) as (_, talking):
        a, b = Host("a"), Host("b")
        stayer, leaver = await talking.joined(a), await talking.joined(b)
        watcher = await Watcher(stayer.Watch()).hello()
        assert await watcher.receive() == "snapshot"
        await watcher.ack()
        assert {f"node/{a.id}", f"node/{b.id}"} <= set(watcher.items)
        reply = await leaver.Leave(mesh_pb2.LeaveRequest())
        assert await watcher.receive() == "delta"
        assert watcher.revision == reply.revision
        assert watcher.members == {"network", f"node/{a.id}", f"endpoints/{a.id}"}
    async with controller_on(target, tmp_path) as (controller, _):
        assert watcher.members <= set(controller.mirror.view("mesh").records)


async def test_hosts_that_come_at_once_join_in_a_few_transactions(target: str, tmp_path: Path) -> None:
    async with controller_on(target, tmp_path) as (controller, talking):
        token, before = await talking.token(), controller.mirror.revision
        hosts = [Host(f"h{number}") for number in range(40)] + [Host("h0")]
        joined = await asyncio.gather(
            *(talking.join.Join(host.request(token)) for host in hosts), return_exceptions=True
        )
        (refused,) = (reply for reply in joined if isinstance(reply, Exception))
        assert "the name h0 is taken" in str(refused)
        view = controller.mirror.view("mesh")
        nodes = [node for host in hosts if (node := view.node(host.id))]
        assert len({node.name for node in nodes}) == len(nodes) == 40
        assert len({node.addresses for node in nodes}) == 40
        assert controller.mirror.revision < before + 20


async def test_two_controllers_see_each_others_changes(target: str, tmp_path: Path) -> None:
    async with two_controllers(target, tmp_path) as [(_, one), (_, two)]:
        a, b = Host("a"), Host("b")
        stayer = await one.joined(a)
        watcher = await Watcher(stayer.Watch()).hello()
        await watcher.receive()
        await watcher.ack()
        reply = await two.join.Join(b.request(await two.token()))
        assert await watcher.receive() == "delta"
        await watcher.ack()
        assert watcher.items[f"node/{b.id}"] == reply.node
        nodes = (await two.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes  # what it wrote, it reads
        assert [node.name for node in nodes] == ["a", "b"]
        await two.mesh(b, reply.certificate).Leave(mesh_pb2.LeaveRequest())
        assert await watcher.receive() == "delta"
        assert f"node/{b.id}" not in watcher.items


async def test_racing_joins_on_two_controllers_give_no_address_twice(target: str, tmp_path: Path) -> None:
    async with two_controllers(target, tmp_path) as [(first, one), (second, two)]:
        token = await one.token()
        await in_step(first, second)
        hosts = [Host(f"n{number}") for number in range(40)]
        joins = [(one, two)[number % 2].join.Join(host.request(token)) for number, host in enumerate(hosts)]
        replies = await asyncio.gather(*joins)
        await in_step(first, second)
        for controller in (first, second):
            assert len(controller.mirror.held("addresses", "mesh")) == 2 * len(hosts)
            assert len(controller.mirror.held("nodes", "mesh")) == len(hosts)
        heads = [each.mirror.view("mesh").map.head.digest for each in (first, second)]
        assert heads[0] == heads[1]
        assert len({reply.node for reply in replies}) == len(hosts)


async def test_a_delete_by_another_is_waited_for(target: str) -> None:
    """The store can't tell when a compared key was deleted: the mirror waits for news, and plans again."""
    key, plans = keys.address("mesh", "10.9.0.1"), []
    async with closing_both(open_store(target), open_store(target)) as (store, other):
        await store.txn([], [Put(key, b"a")])
        mirror = Mirror(store, ROOT.anchor, Audit(store, ROOT, lambda: START, "c1"))
        await mirror.load()
        await other.txn([], [Delete(key)])

        def plan() -> Change:
            kv = mirror.key(key)
            plans.append(kv)
            return Change([unchanged(kv) if kv else absent(key)], [Put(key, b"b")])

        changing = asyncio.create_task(mirror.change(plan))
        await asyncio.sleep(0.2)
        assert len(plans) == 1
        following = asyncio.create_task(mirror.follow())
        assert (await changing).succeeded
        assert [bool(kv) for kv in plans] == [True, False]
        following.cancel()


async def test_what_others_keep_in_etcd_is_not_waited_for(target: str) -> None:
    async with closing_both(open_store(target), open_store(f"{target}elsewhere")) as (store, other):
        await store.txn([], [Put("/a", b"")])
        later = await other.txn([], [Put("/b", b"")])
        for result in (await store.txn([absent("/a")], ()), await store.txn([], [Delete("/absent")])):
            assert result.revision < later.revision


async def test_a_lost_comparison_tells_what_to_wait_for(target: str) -> None:
    async with closing_both(open_store(target), open_store(target)) as (store, other):
        theirs = await other.txn([], [Put("/a", b"")])
        await other.txn([], [Put("/b", b"")])
        lost = await store.txn([absent("/a"), absent("/c")], [Put("/c", b"")])
        assert (lost.succeeded, lost.revision) == (False, theirs.revision)


@asynccontextmanager
async def closing_both(one: Store, other: Store) -> AsyncIterator[tuple[Store, Store]]:
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def test_etcd_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "_CATCH_UP", 3.0)
    with cluster(tmp_path) as [member]:
        async with controller_on(f"etcd://{member.endpoint}/mesh", tmp_path) as (controller, talking):
            token = await talking.token()
            stayer = await talking.joined(Host("a"), token)
            member.kill()
            watcher = await Watcher(stayer.Watch()).hello()
            assert await watcher.receive() == "snapshot"  # from memory
            with pytest.raises(Exception, match=r"can't be reached|may or may not"):
                await talking.joined(Host("b"), token)
            member.start()
            await asyncio.to_thread(member.wait_ready)
            await talking.joined(Host("c"), token)
            assert not any(duty.done() for duty in controller.duties)


# What can be wrong, in one line each.


async def refusal(settings: ControllerConfig, error: type[Exception]) -> str:
    with pytest.raises(error) as raised:
        async with running(settings):
            pass
    return str(raised.value)


async def test_the_prefix_of_another_mesh(target: str, tmp_path: Path) -> None:
    async with controller_on(target, tmp_path / "one"):
        pass
    words = await refusal(config(tmp_path / "two", store=target), StateError)
    assert "the store is of root" in words


async def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    words = await refusal(config(tmp_path, store=f"etcd://127.0.0.1:{port}/mesh"), StoreUnavailableError)
    assert words.startswith(f"etcd://127.0.0.1:{port}/mesh can't be reached: ")
    assert "Connection refused" in words
    assert "\n" not in words


async def test_a_name_that_is_none(tmp_path: Path) -> None:
    words = await refusal(config(tmp_path, store="etcd://nowhere.invalid/mesh"), StoreUnavailableError)
    assert "nowhere.invalid" in words


async def test_an_url_that_can_not_be(tmp_path: Path) -> None:
    assert "names no host" in await refusal(config(tmp_path, store="etcd:x"), ConfigError)
