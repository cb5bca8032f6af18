"""Agents and two real controllers on a real etcd: which one they follow, and how they go over."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from overmesh.agent import calls
from overmesh.agent import sync as syncs
from overmesh.agent.controllers import better
from overmesh.config import AgentConfig
from overmesh.controller.daemon import Controller, running
from overmesh.controller.peermap import NetworkMap
from tests.unit.agent.conftest import Mesh, host, joined, state
from tests.unit.agent.test_sync import Member, following, until
from tests.unit.controller.lab import config, share_root
from tests.unit.controller.store.backends import EtcdBackend


@dataclass
class Two:
    """One etcd, and controllers on it that come and go."""

    path: Path
    target: str
    undo: AsyncExitStack

    async def start(self, name: str) -> tuple[Mesh, AsyncExitStack]:
        """Run a controller; closing what comes back ends it."""
        settings = config(self.path / name, store=self.target)
        share_root(self.path, settings.state_dir)
        life = await self.undo.enter_async_context(AsyncExitStack())
        controller = await life.enter_async_context(running(settings))
        return Mesh(settings, controller), life


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with AsyncExitStack() as undo:
        yield Two(tmp_path / "controllers", EtcdBackend(tmp_path).target, undo)


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every whole map that is sent adds its revision."""
    sent: list[int] = []
    whole = NetworkMap.snapshot

    def counted(self: NetworkMap) -> object:
        sent.append(self.head.revision)
        return whole(self)

    monkeypatch.setattr(NetworkMap, "snapshot", counted)
    return sent


def address(mesh: Mesh) -> str:
    return f"127.0.0.1:{mesh.controller.listening.mesh_port}"


def connected(member: Member, mesh: Mesh) -> bool:
    contact = member.sync.contact
    return contact.connected and contact.address == address(mesh)


def preferring(mesh: Mesh, *members: Member) -> list[Member]:
    """Return those whose first choice this controller is."""
    return [
        member
        for member in members
        if not better(member.identity.membership.node_id, member.replica.controllers, address(mesh))
    ]


async def agents(mesh: Mesh, tmp_path: Path, count: int) -> list[Member]:
    configs: list[AgentConfig] = [host(tmp_path, f"n{number}") for number in range(count)]
    for each in configs:
        await joined(mesh, each)
    return [Member(each) for each in configs]


def in_step(controller: Controller, *members: Member) -> bool:
    head = controller.mirror.view("mesh").map.head.digest
    return all(member.replica.digest.to_bytes() == head for member in members)


async def test_when_a_controller_goes_its_agents_resume_at_the_other(
    two: Two, tmp_path: Path, snapshots: list[int]
) -> None:
    first, life = await two.start("one")
    members = await agents(first, tmp_path, 3)
    async with following(*members):
        await until(lambda: in_step(first.controller, *members) and bool(members[0].applied[-1]))
        second, _ = await two.start("two")
        await until(lambda: all(address(second) in member.sync.controllers for member in members))
        await until(lambda: in_step(second.controller, *members))
        held = [member.replica.revision for member in members]
        snapshots.clear()
        await life.aclose()
        await until(lambda: all(connected(member, second) for member in members))
        await joined(second, host(tmp_path, "late"))
        await until(lambda: all("late" in member.peers for member in members))
        await until(lambda: in_step(second.controller, *members))
        assert snapshots == []
        for member, before in zip(members, held, strict=True):
            since = member.applied[member.applied.index(before) :]
            assert since == sorted(since), "no revision is gone back"


async def test_agents_move_to_a_controller_that_comes_first_and_miss_nothing(
    two: Two, tmp_path: Path, snapshots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncs, "SETTLED", 0.0)
    monkeypatch.setattr(syncs, "LOOK_EVERY", 0.2)
    first, _ = await two.start("one")
    members = await agents(first, tmp_path, 6)
    async with following(*members):
        await until(lambda: in_step(first.controller, *members) and all(member.applied for member in members))
        second, life = await two.start("two")
        await until(lambda: all(len(member.replica.controllers) == 2 for member in members))
        snapshots.clear()
        there, here = preferring(second, *members), preferring(first, *members)
        await until(lambda: all(connected(member, second) for member in there))
        await until(lambda: all(connected(member, first) for member in here))
        await joined(first, host(tmp_path, "late"))
        await until(lambda: all("late" in member.peers for member in members))
        await life.aclose()
        await until(lambda: all(connected(member, first) for member in members))
        await until(lambda: in_step(first.controller, *members))
        assert snapshots == []


async def test_an_agent_starts_with_any_controller_that_it_has_known(two: Two, tmp_path: Path) -> None:
    first, life = await two.start("one")
    second, _ = await two.start("two")
    await first.controller.mirror.catch_up(second.controller.mirror.revision)
    (member,) = await agents(first, tmp_path, 1)
    told = member.identity.membership.controllers
    assert {address(first), address(second)} <= set(told), "joining names them all"
    await life.aclose()
    async with following(member):
        await until(lambda: connected(member, second))
        await until(lambda: len(member.replica.controllers) == 1)
    assert address(first) in state(host(tmp_path, "n0")).identity().membership.controllers


async def test_a_controller_that_does_not_answer_holds_nobody_up(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is frozen: its port takes connections, and that is all."""
    monkeypatch.setattr(calls, "CONNECT_TIMEOUT", 1.0)
    mesh, _ = await two.start("one")
    (member,) = await agents(mesh, tmp_path, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        mine = member.identity.membership
        monkeypatch.setattr(
            syncs.Sync, "controllers", property(lambda _: (f"127.0.0.1:{port}", *mine.controllers))
        )
        async with asyncio.timeout(8), following(member):
            await until(lambda: connected(member, mesh))
