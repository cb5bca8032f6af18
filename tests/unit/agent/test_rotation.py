"""The mesh root is rotated under agents that follow a real controller."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from overmesh.agent import join as joins
from overmesh.agent.renewal import Renewal
from overmesh.controller.daemon import running
from overmesh.controller.mirror import Change
from overmesh.controller.rotation.rootwatch import RootWatch
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.controller.trust.rootkey import RootKey
from overmesh.errors import PinMismatchError
from overmesh.model import Root
from overmesh.proto import admin_pb2, admin_pb2_grpc
from tests.unit.agent.conftest import Mesh, host, joined
from tests.unit.agent.test_sync import Member, until
from tests.unit.controller.lab import config

SHOW, STAGE = ("ShowRoots", admin_pb2.ShowRootsRequest()), ("StageRoot", admin_pb2.StageRootRequest())
ACTIVATE = ("ActivateRoot", admin_pb2.ActivateRootRequest())
RETIRE = ("RetireRoot", admin_pb2.RetireRootRequest())
FORCED = ("RetireRoot", admin_pb2.RetireRootRequest(force=True))


@asynccontextmanager
async def alive(*members: Member) -> AsyncIterator[None]:
    """Have members follow their controller and renew what they have, as agents do."""
    renewals = [Renewal(member.sync, member.replica, random=lambda least, _most: least) for member in members]
    duties = [*(member.sync.run() for member in members), *(one.run() for one in renewals)]
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(10):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Run a controller whose agents look at their certificates more than once a second."""
    settings = config(tmp_path / "controller", certificate_lifetime=10)
    async with running(settings) as controller:
        yield Mesh(settings, controller)


async def member_of(mesh: Mesh, tmp_path: Path, name: str) -> Member:
    await joined(mesh, host(tmp_path, name))
    return Member(host(tmp_path, name))


async def said(mesh: Mesh, step: tuple[str, object]) -> admin_pb2.RootsState:
    reply: admin_pb2.RootsState = await mesh.admin(*step)
    return reply


async def shown(mesh: Mesh, true: Callable[[admin_pb2.RootsState], bool]) -> admin_pb2.RootsState:
    """Wait until this is true of where the mesh stands."""
    async with asyncio.timeout(30):
        while not true(now := await said(mesh, SHOW)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return now


async def ready(mesh: Mesh) -> admin_pb2.RootsState:
    """Wait until nobody has to be waited for any more."""
    return await shown(mesh, lambda now: not (now.agents or now.members or now.records or now.controllers))


def states(now: admin_pb2.RootsState) -> list[str]:
    return [root.state for root in now.roots]


async def test_all_the_way(quick: Mesh, tmp_path: Path) -> None:
    members = [await member_of(quick, tmp_path, name) for name in ("a", "b")]
    token = await quick.token()
    token_id = token.split(".")[1]
    alone: list[Member] = []

    def seen(roots: int) -> bool:
        alone.extend(member for member in members if not member.peers)
        return all(len(member.replica.roots.keys) == roots for member in members)

    async with alive(*members):
        await until(lambda: all(member.peers for member in members))
        for _ in range(2):  # the second time it is so already
            assert states(await said(quick, STAGE)) == ["signs", "next"]
        await until(lambda: seen(2))
        assert token_id in (await ready(quick)).tokens

        for _ in range(2):
            assert states(await said(quick, ACTIVATE)) == ["old", "signs"]
        assert token_id in (await ready(quick)).tokens
        assert seen(2)
        with pytest.raises(PinMismatchError, match="does not hold the mesh root"):
            await joins.join(host(tmp_path, "late"), quick.join_port, token, "late", lambda *_: None)
        late = await member_of(quick, tmp_path, "late")

        assert states(await said(quick, RETIRE)) == ["signs"]
        with pytest.raises(grpc.aio.AioRpcError, match="there is no old root"):
            await said(quick, RETIRE)
        await until(lambda: seen(1))
        async with alive(late):
            await until(lambda: sorted(late.peers) == ["a", "b"])
            await until(lambda: all(member.state.map() == member.replica.held() for member in members))
    assert alone == []
    present = quick.controller.root.signing
    for member in (*members, late):
        assert member.replica.roots.fingerprints == (present.fingerprint,)
        again = Member(host(tmp_path, member.state.path.name), member.state.map())
        assert (again.peers, again.replica.view(0).problems) == (member.peers, ())
    files = sorted(quick.config.state_dir.glob("root*"))
    assert [file.name for file in files] == ["root.key", "root.pem"]
    assert files[1].read_bytes() == present.pem


async def test_everything_is_signed_again(quick: Mesh, tmp_path: Path) -> None:
    gone = (await joined(quick, host(tmp_path, "gone"))).node_id
    await quick.remove("gone")
    kept = (await joined(quick, host(tmp_path, "kept"))).node_id
    for step in (STAGE, ACTIVATE, FORCED):
        await said(quick, step)
    mirror, present = quick.controller.mirror, quick.controller.root.signing
    items = mirror.view("mesh").map.items
    assert {"network", f"node/{kept}", f"endpoints/{kept}", f"revoked/{gone}"} <= set(items)
    assert {key for key in items if not mirror.roots.signer(key, items[key])} == set()
    marked = [kv for kv in mirror.everything() if re.search(rb"\n[0-9a-f]{64}\Z", kv.value)]
    assert {kv.key.split("/")[3] for kv in marked} >= {"tokens", "credentials"}
    for kv in marked:
        value, _, mac = kv.value.rpartition(b"\n")
        assert mac == present.mac(kv.key, value)
    assert len(quick.controller.root.keys) == len(mirror.roots.keys) == 1
    async with grpc.aio.insecure_channel(f"unix:{quick.config.socket}") as channel:
        stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
        entries = [entry async for entry in stub.ListAudit(admin_pb2.AuditRequest())]
    assert {entry.what for entry in entries} >= {"node joined", "next root staged", "old root retired"}
    assert all(entry.genuine for entry in entries)


async def test_a_host_that_slept_through_two_rotations_comes_back(quick: Mesh, tmp_path: Path) -> None:
    sleeper = await member_of(quick, tmp_path, "sleeper")
    awake = await member_of(quick, tmp_path, "awake")
    async with alive(sleeper):
        await until(lambda: sleeper.peers == ["awake"])
    for _ in range(2):
        for step in (STAGE, ACTIVATE):
            await said(quick, step)
        with pytest.raises(grpc.aio.AioRpcError, match="have not come over yet: awake, sleeper"):
            await said(quick, RETIRE)
        await said(quick, FORCED)
    woken = Member(host(tmp_path, "sleeper"), sleeper.state.map())
    async with alive(woken, Member(host(tmp_path, "awake"))):
        await until(lambda: woken.replica.roots.fingerprints == (quick.controller.root.fingerprint,))
        await until(lambda: woken.sync.contact.connected and woken.peers == ["awake"])
        await until(lambda: woken.state.map() == woken.replica.held())
    assert awake.sync.contact.error == ""
    again = Member(host(tmp_path, "sleeper"), woken.state.map())
    assert (again.peers, again.replica.view(0).problems) == (["awake"], ())


async def test_a_stolen_old_root_is_worth_nothing(quick: Mesh, tmp_path: Path) -> None:
    member = await member_of(quick, tmp_path, "a")
    stolen = quick.controller.root.signing
    async with alive(member):
        for step in (STAGE, ACTIVATE):
            await until(lambda: member.sync.contact.connected)
            await shown(quick, lambda now: not now.agents)
            await said(quick, step)
        await ready(quick)
        await said(quick, RETIRE)
        await until(lambda: len(member.replica.roots.keys) == 1)
        before = member.replica.view(0).map.network
        thief = RootKey.new()
        forged = {
            keys.network("mesh"): stolen.sign(replace(before, serial=2**50)),
            keys.root(thief.fingerprint): stolen.sign(Root(thief.der, serial=2**50)),
            keys.root(quick.controller.root.fingerprint): stolen.sign(
                Root(quick.controller.root.der, retired=True, serial=2**50)
            ),
        }
        puts = [Put(key, signed) for key, signed in forged.items()]
        result = await quick.controller.mirror.change(lambda: Change([], puts))
        await until(lambda: member.replica.revision >= result.revision)
        assert member.replica.view(0).map.network == before
        assert member.replica.roots.fingerprints == (quick.controller.root.fingerprint,)
        assert quick.controller.mirror.roots == member.replica.roots


async def test_who_is_not_ready_is_named(quick: Mesh, tmp_path: Path) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="there is no next root"):
        await said(quick, ACTIVATE)
    with pytest.raises(grpc.aio.AioRpcError, match="there is no old root"):
        await said(quick, RETIRE)
    await said(quick, STAGE)
    with pytest.raises(grpc.aio.AioRpcError, match="does not sign yet"):
        await said(quick, RETIRE)
    await joined(quick, host(tmp_path, "a"))
    await said(quick, ACTIVATE)
    assert [member.name for member in (await said(quick, SHOW)).members] == ["a"]
    with pytest.raises(grpc.aio.AioRpcError, match="have not come over yet: a"):
        await said(quick, RETIRE)
    with pytest.raises(grpc.aio.AioRpcError, match="is not finished"):
        await said(quick, STAGE)


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_controller_that_dies_after_a_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The transaction is made, and nothing of what follows from it: that is how a crash leaves it."""

    async def die(_self: RootWatch) -> None:
        pass

    settings = config(tmp_path)
    async with running(settings) as controller:
        mesh = Mesh(settings, controller)
        node = await joined(mesh, host(tmp_path, "a"))
        for number, step in enumerate((STAGE, ACTIVATE, FORCED)[:steps], 1):
            if number == steps:
                monkeypatch.setattr(RootWatch, "look", die)
            await said(mesh, step)
    monkeypatch.undo()
    async with running(settings) as controller:
        mesh = Mesh(settings, controller)
        after = [["signs", "next"], ["old", "signs"], ["signs"]][steps - 1]
        await shown(mesh, lambda now: states(now) == after and not now.records)
        pin = controller.mirror.key(keys.ROOT_PIN)
        assert pin
        assert pin.value == controller.root.pin
        trusted = set(controller.mirror.roots.fingerprints)
        await until(lambda: {key.fingerprint for key in controller.root.keys} == trusted)
        assert (settings.state_dir / "root.next.key").exists() == (steps < 3)
        # Whatever is left to be done can be done.
        for step in (STAGE, ACTIVATE, FORCED)[steps:]:
            await said(mesh, step)
        assert (await joined(mesh, host(tmp_path, "b"))).node_id != node.node_id
