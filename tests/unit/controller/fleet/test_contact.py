"""What a controller says while it does not hear of its store, or not all of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.controller.audit import Audit
from overmesh.controller.daemon import running
from overmesh.controller.fleet import lease as lease_module
from overmesh.controller.fleet.contact import Contact
from overmesh.controller.fleet.lease import Lease
from overmesh.controller.mirror import Mirror
from overmesh.controller.store import keys, open_store
from overmesh.controller.store.base import Put, RangeResult, Store
from overmesh.controller.store.timed import TimedStore
from overmesh.errors import LeaseNotFoundError, NotYetError, StoreUnavailableError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.etcd import cluster
from tests.unit.controller import lab
from tests.unit.controller.lab import ROOT, START, Clock
from tests.unit.controller.store.backends import EtcdBackend


@dataclass
class Remote:
    """A store behind a line that can be cut (requests fail) or go dead (they are never answered)."""

    store: Store
    cut: bool = False
    dead: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def range(self, *args: Any, **options: Any) -> RangeResult:
        await self._pass()
        return await self.store.range(*args, **options)

    async def _pass(self) -> None:
        if self.dead:
            await asyncio.Event().wait()
        if self.cut:
            raise StoreUnavailableError("the line is cut")


async def not_yet(contact: Contact) -> str:
    with pytest.raises(NotYetError) as raised:
        await contact.all_known(0)
    return raised.value.cause


# Whether the store answers.


async def test_a_store_that_does_not_answer_is_named_within_a_moment(tmp_path: Path) -> None:
    async with lab.mesh(tmp_path) as mesh:
        clock, line = Clock(), Remote(mesh.store)
        contact = Contact(line, mesh.mirror, Lease(line, clock))
        assert await contact.current() == []
        await contact.all_known(0)
        clock.now += 24
        line.cut = True
        [problem] = await contact.current()
        assert (problem.subject, problem.reason) == ("store", "not heard for 24 s: the line is cut")
        assert await not_yet(contact) == "the store can't be asked: the line is cut"
        line.dead = True
        async with asyncio.timeout(1):
            [problem] = await contact.current()
        assert problem.reason == "not heard for 24 s: no answer within 0.3 s"
        assert await not_yet(contact) == "the store can't be asked: it does not answer"


async def test_a_store_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    async with lab.mesh(tmp_path) as mesh:
        line = Remote(mesh.store, cut=True)
        asking = asyncio.create_task(Contact(line, mesh.mirror, mesh.lease).all_known(10))
        await asyncio.sleep(0.2)
        assert not asking.done()
        line.cut = False
        await asking


def counting_ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the prefixes that are read from the store from now on."""
    asked: list[str] = []
    ranging = TimedStore.range

    async def counted(store: TimedStore, prefix: str, **options: Any) -> RangeResult:
        asked.append(prefix)
        return await ranging(store, prefix, **options)

    monkeypatch.setattr(TimedStore, "range", counted)
    return asked


async def said(call: Any) -> list[str]:
    """Return what the answer to a call says is wrong with it."""
    await call
    return list(rpc.told(await call.trailing_metadata()))


async def test_all_that_a_controller_without_its_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(tmp_path) as [member]:
        settings = lab.config(tmp_path, store=f"etcd://{member.endpoint}/mesh")
        async with running(settings) as controller, lab.client(settings, controller) as talking:
            admin = talking.admin
            converged = await admin.Wait(admin_pb2.WaitRequest(timeout_ms=2000))
            assert converged.converged
            member_of_it = await talking.joined(lab.Host("a"))
            head = await member_of_it.Head(mesh_pb2.HeadRequest())
            assert head.revision == controller.mirror.view("mesh").map.head.revision
            [here] = (await admin.ListControllers(admin_pb2.ListControllersRequest())).controllers
            asked = counting_ranges(monkeypatch)
            assert await said(admin.ListNodes(admin_pb2.ListNodesRequest())) == []
            assert (list(here.problems), len(asked)) == ([], 1)

            member.kill()
            for call in (
                admin.Wait(admin_pb2.WaitRequest(timeout_ms=100)),
                member_of_it.Head(mesh_pb2.HeadRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call
                error = rpc.raised(raised.value, "controller")
                assert isinstance(error, NotYetError)
                assert error.cause.startswith("the store can't be asked: ")
            of_the_past = admin_pb2.WaitRequest(revision=converged.revision, timeout_ms=100)
            assert (await admin.Wait(of_the_past)).converged
            [of_nodes] = await said(admin.ListNodes(admin_pb2.ListNodesRequest()))
            [of_tokens] = await said(admin.ListTokens(admin_pb2.ListTokensRequest()))
            [here] = (await admin.ListControllers(admin_pb2.ListControllersRequest())).controllers
            [own] = here.problems
            for problem in (of_nodes, of_tokens, f"{own.subject}: {own.reason}"):
                assert problem.startswith("store: not heard for ")

            waiting = asyncio.ensure_future(admin.Wait(admin_pb2.WaitRequest(timeout_ms=20_000)))
            member.start()
            await asyncio.to_thread(member.wait_ready)
            assert (await waiting).converged


# Whether all that it holds is known.


@dataclass
class Following:
    """A mirror on etcd that shows what happens only while it is let."""

    mirror: Mirror
    store: Store
    contact: Contact
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def go_on(self) -> None:
        self.tasks.append(asyncio.create_task(self.mirror.follow()))


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[tuple[Following, Store]]:
    """Give a mirror that stands still, and a store of others in the same etcd."""
    target = EtcdBackend(path).target
    async with AsyncExitStack() as undo:
        store, others = open_store(target), open_store(f"{target}elsewhere")
        for opened in (store, others):
            undo.push_async_callback(opened.close)
        mirror = Mirror(store, ROOT.anchor, Audit(store, ROOT, lambda: START, "c1"))
        await mirror.load()
        here = Following(mirror, store, Contact(store, mirror, Lease(store)))
        try:
            yield here, others
        finally:
            for task in here.tasks:
                task.cancel()
                await asyncio.wait({task})


async def test_a_store_that_answers_and_does_not_tell_its_changes(tmp_path: Path) -> None:
    async with following(tmp_path) as (here, _):
        change = await here.store.txn([], [Put(keys.NETWORKS, b"")])
        assert await not_yet(here.contact) == "the store can't be asked: it does not answer"
        asking = asyncio.create_task(here.contact.all_known(10))
        await asyncio.sleep(0.5)
        assert not asking.done()
        here.go_on()
        await asking
        assert here.mirror.revision >= change.revision


async def test_what_others_do_in_the_same_etcd_is_not_waited_for(tmp_path: Path) -> None:
    async with following(tmp_path) as (here, others):
        here.go_on()
        foreign = await others.txn([], [Put("/x", b"")])
        async with asyncio.timeout(3):
            await here.contact.all_known(10)
        assert here.mirror.revision > foreign.revision, "by a change of our own"


# The lease, by which silence is measured.


@dataclass
class Granting:
    """A store that grants and renews leases, or knows none, or is away."""

    away: bool = False
    knows: bool = True
    granted: int = 0

    async def grant(self, _ttl: float) -> int:
        self._answer()
        self.granted += 1
        return self.granted

    async def keepalive(self, _lease: int) -> float:
        self._answer()
        if not self.knows:
            raise LeaseNotFoundError("no such lease")
        return 30.0

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailableError("away")


async def test_only_an_answer_of_the_store_ends_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TTL", 0.03)
    store, clock = Granting(), Clock()
    lease = Lease(store, clock)  # type: ignore[arg-type]
    await lease.held()
    keeping = asyncio.create_task(lease.keep_alive())

    async def after(seconds: float) -> float:
        """Return the silence when so much time is over, and the lease was seen to a few times since."""
        clock.now += seconds
        await asyncio.sleep(0.1)
        return lease.silence

    assert await after(25) == 0
    store.away = True
    assert await after(25) == 25
    lease.lost(lease.id)  # the last that it said
    assert await after(25) == 25
    assert await after(25) == 50, "a lease that can't be had is no answer"
    store.away = False
    assert await after(25) == 0
    assert (lease.id, store.granted) == (2, 2)
    keeping.cancel()
