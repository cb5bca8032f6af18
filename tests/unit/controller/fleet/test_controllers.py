"""Several controllers on one etcd: what is in the map of them, what each knows of the others' agents."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.config import ControllerConfig
from overmesh.controller import fleet
from overmesh.controller.agents import Agents
from overmesh.controller.daemon import Controller, running
from overmesh.controller.fleet import controllers as controllers_module
from overmesh.controller.fleet.controllers import controller_id, known, shed_when_cut_off
from overmesh.controller.fleet.lease import Lease
from overmesh.controller.members.tokens import KEPT_AFTER_EXPIRY, Tokens
from overmesh.controller.store import keys
from overmesh.controller.store.base import Delete, Put
from overmesh.controller.store.history import trim_history
from overmesh.controller.trust import Identity
from overmesh.errors import InvalidError, OvermeshError, TokenError
from overmesh.model import controller_key
from overmesh.proto import admin_pb2, controllers_pb2, controllers_pb2_grpc, mesh_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import Client, Host, client, config, share_root
from tests.unit.controller.store.backends import EtcdBackend
from tests.unit.controller.test_watch import Watcher


@dataclass
class One:
    """A controller that runs, how to talk to it, and how to end it."""

    settings: ControllerConfig
    controller: Controller
    client: Client
    life: AsyncExitStack

    @property
    def id(self) -> str:
        here = self.controller.listening
        return controller_id([f"127.0.0.1:{here.mesh_port}"], [f"127.0.0.1:{here.join_port}"])

    @property
    def known(self) -> set[str]:
        return {one.id for one in known(self.controller.mirror)}

    @property
    def at_the_same_place(self) -> ControllerConfig:
        here = self.controller.listening
        return replace(self.settings, join_port=here.join_port, mesh_port=here.mesh_port)


@dataclass
class Fleet:
    path: Path
    target: str
    undo: AsyncExitStack
    count: int = 0
    ended: list[One] = field(default_factory=list)

    async def start(self, settings: ControllerConfig | None = None) -> One:
        self.count += 1
        settings = settings or config(self.path / f"c{self.count}", store=self.target)
        share_root(self.path, settings.state_dir)
        life = await self.undo.enter_async_context(AsyncExitStack())
        controller = await life.enter_async_context(running(settings))
        talking = await life.enter_async_context(client(settings, controller))
        return One(settings, controller, talking, life)


@pytest.fixture
async def controllers(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as undo:
        yield Fleet(tmp_path, EtcdBackend(tmp_path).target, undo)


async def until(true: Any) -> None:
    async with asyncio.timeout(15):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def caught_up(*controllers: One) -> None:
    """Return once each knows what was done before, as when it is asked for anything."""
    for one in controllers:
        await one.client.admin.ListNetworks(admin_pb2.ListNetworksRequest())


# In the map.


async def test_those_that_run_are_in_the_map_and_those_that_stop_are_not(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: first.known == second.known == {first.id, second.id})
    watcher = await Watcher((await first.client.joined(Host("a"))).Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    assert {controller_key(first.id), controller_key(second.id)} <= set(watcher.items)
    await second.life.aclose()
    await watcher.receive()
    assert controller_key(second.id) not in watcher.items


async def test_one_that_starts_again_at_the_same_place_brings_back_the_same_bytes(controllers: Fleet) -> None:
    first = await controllers.start()
    key = keys.controller(first.id)
    before = first.controller.mirror.key(key)
    await first.life.aclose()
    again = await controllers.start(first.at_the_same_place)
    after = again.controller.mirror.key(key)
    assert before
    assert after
    assert (after.value, after.lease == before.lease) == (before.value, False)


async def test_one_that_is_missing_is_put_there_again(controllers: Fleet) -> None:
    """As when its lease has ended, or another that is reached under the same name has stopped."""
    first = await controllers.start()
    mirror = first.controller.mirror
    kv = mirror.key(keys.controller(first.id))
    assert kv
    await mirror._store.revoke(kv.lease)
    await until(lambda: (now := mirror.key(kv.key)) and now.lease != kv.lease)
    await mirror._store.txn([], [Delete(kv.key)])
    await until(lambda: (now := mirror.key(kv.key)) and now.value == kv.value)


async def test_one_that_was_made_up_is_known_to_nobody(controllers: Fleet) -> None:
    first = await controllers.start()
    forged = mesh_pb2.ControllerRecord(id="x", mesh=["192.0.2.66:7443"], serial=1).SerializeToString()
    signed = mesh_pb2.Signed(body=forged, signature=b"no").SerializeToString()
    result = await first.controller.mirror._store.txn([], [Put(keys.controller("x"), signed)])
    await first.controller.mirror.reached(result.revision)
    assert first.known == {first.id}


async def test_whoever_joins_is_told_of_all(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: len(first.known) == 2)
    reply = await first.client.join.Join(Host("a").request(await first.client.token()))
    ports = [one.controller.listening.mesh_port for one in (first, second)]
    assert list(reply.controllers) == [f"127.0.0.1:{port}" for port in ports]


# What another one has just written.


async def paused(one: One) -> "asyncio.Event":
    """Have a controller's mirror stand still until the event that comes back is set."""
    mirror, go = one.controller.mirror, asyncio.Event()
    take, waiting = mirror._take, []

    def later(batch: Any) -> None:
        if go.is_set():
            take(batch)
        else:
            waiting.append(batch)

    async def flush() -> None:
        await go.wait()
        for batch in waiting:
            take(batch)

    mirror._take = later  # type: ignore[method-assign]
    one.life.push_async_callback(asyncio.wait, {asyncio.create_task(flush())})
    one.life.callback(go.set)
    return go


async def test_a_token_of_another_controller_is_good_at_once(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: len(second.known) == 2)
    go = await paused(second)
    token = await first.client.token()
    joining = asyncio.create_task(second.client.joined(Host("a"), token))
    await asyncio.sleep(0.3)
    assert not joining.done()
    go.set()
    await joining


async def test_a_token_that_nobody_has_made_is_refused(controllers: Fleet) -> None:
    first = await controllers.start()
    for token_id in ("0123456789", "", "a/b", "é", "x" * 1000):
        token = replace(await first.client.token(), id=token_id)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await first.client.join.Join(Host("a").request(token))
        assert isinstance(rpc.raised(raised.value, "it"), TokenError)


async def test_a_node_that_joined_elsewhere_is_a_member_at_once(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: len(second.known) == 2)
    go, host = await paused(second), Host("a")
    reply = await first.client.join.Join(host.request(await first.client.token()))
    watcher = await Watcher(second.client.mesh(host, reply.certificate).Watch()).hello()
    receiving = asyncio.create_task(watcher.receive())
    await asyncio.sleep(0.3)
    assert not receiving.done()
    go.set()
    assert await receiving == "snapshot"


async def test_a_node_that_joined_elsewhere_is_found_by_its_name_at_once(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: len(second.known) == 2)
    go = await paused(second)
    await first.client.joined(Host("a"))
    removing = second.client.admin.RemoveNode(admin_pb2.RemoveNodeRequest(node="a"))
    await asyncio.sleep(0.5)  # longer than a controller waits before every command
    assert not removing.done()
    go.set()
    assert (await removing).node.name == "a"


async def test_who_has_seen_more_than_a_controller_waits_for_it_and_goes_on(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    await until(lambda: len(second.known) == 2)
    host = Host("a")
    reply = await first.client.join.Join(host.request(await first.client.token()))
    watcher = await Watcher(first.client.mesh(host, reply.certificate).Watch()).hello()
    await watcher.receive()
    await watcher.ack()
    await until(lambda: second.controller.mirror.revision >= watcher.revision)
    go = await paused(second)
    await first.client.joined(Host("b"))
    assert await watcher.receive() == "delta"
    over = Watcher(second.client.mesh(host, reply.certificate).Watch(), watcher.items)
    await over.hello(watcher.revision, watcher.digest)
    receiving = asyncio.create_task(over.receive())
    await asyncio.sleep(0.3)
    assert not receiving.done()
    go.set()
    assert await receiving in ("heartbeat", "delta"), "no snapshot"
    assert over.items == watcher.items


# Each other's agents.


async def an_agent(one: One, name: str, token: JoinToken) -> Watcher:
    """Connect an agent that has acked what it got."""
    watcher = await Watcher((await one.client.joined(Host(name), token)).Watch()).hello(host_id=name)
    assert await watcher.receive() == "snapshot"
    await watcher.ack()
    return watcher


async def listed(one: One, name: str = "") -> Any:
    return await one.client.admin.ListNodes(admin_pb2.ListNodesRequest(node=name))


async def test_each_knows_of_the_others_agents(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    token = await first.client.token()
    here, there = await an_agent(first, "a", token), await an_agent(second, "b", token)
    for watcher in (here, there):
        await settled(watcher, second)
    for asked in (first, second):
        reply = await listed(asked)
        assert not reply.problems, reply.problems
        nodes = reply.nodes
        assert [(node.name, node.online, node.in_step, node.version) for node in nodes] == [
            ("a", True, True, "test"),
            ("b", True, True, "test"),
        ]
        assert (await listed(asked, "b")).nodes[0].online
        said = (await asked.client.admin.ListControllers(admin_pb2.ListControllersRequest())).controllers
        assert {one.id: (one.here, one.agents, one.unanswered) for one in said} == {
            first.id: (asked is first, 1, ""),
            second.id: (asked is second, 1, ""),
        }


async def settled(watcher: Watcher, one: One) -> None:
    """Take in and ack until the map is that of a controller."""
    async with asyncio.timeout(10):
        while watcher.digest != one.controller.mirror.view("mesh").map.head.digest:
            await watcher.receive()
            await watcher.ack()


async def test_waiting_is_for_the_agents_of_all(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    token = await first.client.token()
    here, there = await an_agent(first, "a", token), await an_agent(second, "b", token)
    await settled(here, second)
    await first.client.joined(Host("c"), token)
    await settled(here, first)
    wait = admin_pb2.WaitRequest(timeout_ms=300)
    [behind] = (await first.client.admin.Wait(wait)).behind
    assert behind.name == "b"
    waiting = asyncio.ensure_future(first.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=10_000)))
    await asyncio.sleep(1.2)
    assert not waiting.done()
    await settled(there, first)
    reply = await waiting
    assert (reply.converged, reply.agents) == (True, 2)


async def test_one_that_does_not_answer_is_named(controllers: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ANSWER", 0.5)
    first = await controllers.start()
    gone = await controllers.start()
    await until(lambda: len(first.known) == 2)
    record = first.controller.mirror.key(keys.controller(gone.id))
    await gone.life.aclose()
    await until(lambda: len(first.known) == 1)
    assert record
    mirror = first.controller.mirror
    await mirror.reached((await mirror._store.txn([], [Put(record.key, record.value)])).revision)
    name = f"controller 127.0.0.1:{gone.controller.listening.mesh_port}"
    assert [problem.subject for problem in (await listed(first)).problems] == [name]
    reply = await first.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=100))
    assert (reply.converged, [one.name for one in reply.behind]) == (False, [name])
    said = (await first.client.admin.ListControllers(admin_pb2.ListControllersRequest())).controllers
    assert [bool(one.unanswered) for one in said if one.id == gone.id] == [True]
    waiting = asyncio.ensure_future(first.client.admin.Wait(admin_pb2.WaitRequest(timeout_ms=10_000)))
    await asyncio.sleep(0.2)
    await mirror._store.txn([], [Delete(record.key)])
    assert (await waiting).converged, "it is no longer in the map"


async def test_nodes_may_not_ask_as_controllers_and_controllers_not_as_nodes(controllers: Fleet) -> None:
    first, host = await controllers.start(), Host("a")
    reply = await first.client.join.Join(host.request(await first.client.token()))
    stub = first.client.mesh(host, reply.certificate, of=controllers_pb2_grpc.ControllersStub)
    for call in (
        stub.Describe(controllers_pb2.DescribeRequest()),
        stub.Sightings(controllers_pb2.SightingsRequest(network="mesh")),
        stub.Wait(admin_pb2.WaitRequest(network="mesh")),
    ):
        assert isinstance(await refused(call), InvalidError)
    me = first.controller.root.issue_controller(first.id)
    posing = first.client.mesh_as(me.key, me.chain)
    assert isinstance(await refused(posing.Leave(mesh_pb2.LeaveRequest())), InvalidError)


def test_no_network_can_be_called_so_that_its_nodes_pass_for_controllers() -> None:
    assert not Identity("controllers", "x").uri.startswith("overmesh-controller:")


async def refused(call: Any) -> OvermeshError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return rpc.raised(raised.value, "it")


# Together.


async def test_what_was_done_at_one_is_seen_at_the_other_by_the_next_command(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    token = await first.client.token()
    for number in range(20):
        one, other = (first, second) if number % 2 else (second, first)
        await one.client.joined(Host(f"n{number}"), token)
        assert (await listed(other, f"n{number}")).nodes
        await one.client.admin.RemoveNode(admin_pb2.RemoveNodeRequest(node=f"n{number}"))
        assert not (await listed(other)).nodes


async def test_first_starts_at_the_same_moment(controllers: Fleet) -> None:
    maker = await controllers.start(config(controllers.path / "maker"))  # of the root, on a store of its own
    assert maker.known == {maker.id}
    both = await asyncio.gather(*(controllers.start() for _ in range(2)))
    await until(lambda: all(len(one.known) == 2 for one in both))
    assert {len(one.controller.mirror.networks) for one in both} == {1}


async def test_background_duties_of_all_at_once(controllers: Fleet) -> None:
    first, second = await controllers.start(), await controllers.start()
    both, mirror = (first, second), first.controller.mirror
    root, long_ago = first.controller.root, lambda: time.time() - 2 * KEPT_AFTER_EXPIRY
    old = Tokens(mirror, root, long_ago)
    for _ in range(3):
        await old.create("mesh", 60, 0, ())
    await first.client.token()
    await caught_up(*both)
    sweeps = [Tokens(one.controller.mirror, root, time.time) for one in both]
    await asyncio.gather(*(tokens.sweep() for tokens in sweeps))
    stores = [one.controller.mirror._store for one in both]
    await asyncio.gather(*(trim_history(store, keep=5) for store in stores * 2))
    await caught_up(*both)
    assert [len(one.controller.mirror.held("tokens")) for one in both] == [1, 1]
    audited = [entry async for entry in first.client.admin.ListAudit(admin_pb2.AuditRequest())]
    assert sum(entry.what == "tokens forgotten" for entry in audited) == 1
    await second.client.joined(Host("a"), await first.client.token())
    assert (await listed(first)).nodes


async def test_agents_of_one_that_has_lost_its_store_are_sent_away_once(
    controllers: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers_module, "_LOOK_EVERY", 0.01)
    one = await controllers.start()
    lease, ended = Lease(one.controller.mirror._store), []
    monkeypatch.setattr(Agents, "finish_all", lambda _, why: ended.append(why))
    silence = 0.0
    monkeypatch.setattr(Lease, "silence", property(lambda _: silence))
    shedding = asyncio.create_task(shed_when_cut_off(lease, lambda: True, one.controller.agents))
    for seconds, times in ((29.0, 0), (37.0, 1), (99.0, 1), (0.0, 1), (37.0, 2)):
        silence = seconds
        await asyncio.sleep(0.1)
        assert len(ended) == times, seconds
    shedding.cancel()
