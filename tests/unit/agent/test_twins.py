"""Two agents with one key and one machine id, as on a cloned virtual machine, and a real controller."""

import asyncio
import logging
import shutil
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from overmesh.agent.calls import Left, leave, part
from overmesh.agent.pace import Backoff
from overmesh.agent.sync import UNDISPUTED, Sync
from overmesh.config import AgentConfig
from overmesh.controller.members import clones
from overmesh.controller.members.clones import Clones
from overmesh.errors import CloneError, ReplacedError, UnreachableError
from overmesh.model import Endpoint
from tests.unit.agent.conftest import Mesh, host, joined
from tests.unit.agent.test_failover import Two, address, two  # noqa: F401
from tests.unit.agent.test_sync import FACTS, Member, following, listed, until, until_listed


def cloned(config: AgentConfig) -> AgentConfig:
    """Return the settings of a copy of a host, with the same machine id."""
    state_dir = config.state_dir.with_name("clone")
    shutil.copytree(config.state_dir, state_dir)
    return replace(config, state_dir=state_dir)


async def twins(mesh: Mesh, tmp_path: Path) -> tuple[Member, Member]:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    first, second = Member(config), Member(cloned(config))
    first.sync.report(FACTS)
    second.sync.report(replace(FACTS, endpoints=(Endpoint(ip_address("192.0.2.66"), 6081),), mtu=1300))
    return first, second


def connects(caplog: pytest.LogCaptureFixture) -> int:
    return [record.getMessage() for record in caplog.records].count("agent connected")


async def test_one_stays_and_the_other_is_told_what_to_do(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = await twins(mesh, tmp_path)
    async with following(first):
        await until_listed(mesh, "a", mtu=FACTS.mtu)
        before = mesh.controller.mirror.revision
        async with following(second):
            await until(lambda: second.sync.contact.copied and first.sync.contact.connected)
            await until_listed(mesh, "a", mtu=FACTS.mtu)
            await asyncio.sleep(2)
            node = await until_listed(mesh, "a", at=["192.0.2.7"])
            assert (first.sync.contact.copied, first.sync.contact.connected) == (False, True)
            assert "and of its machine id" in second.sync.contact.error
            assert "systemd-machine-id-setup" in second.sync.contact.advice
            assert [copy.instance for copy in node.copies] == [second.sync.instance]
    assert connects(caplog) == 3
    assert mesh.controller.mirror.revision - before < 12


async def test_a_copy_that_is_restarted_disturbs_nobody(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = await twins(mesh, tmp_path)
    async with following(first):
        await until(lambda: first.sync.contact.connected)
        async with following(second):
            await until(lambda: second.state.identity().membership.quarantined != "")
            await until(lambda: first.sync.contact.connected)
        before = connects(caplog)
        again = Member(second.config)
        assert again.sync.contact.copied, "before it has asked"
        async with following(again):
            await until(lambda: bool(again.sync.contact.advice))
        with pytest.raises(CloneError):
            await leave(again.identity, first.sync.host_id, again.identity.membership.quarantined)
        assert first.sync.contact.connected
    assert connects(caplog) == before


async def test_two_of_one_snapshot_that_are_even_the_same_run(mesh: Mesh, tmp_path: Path) -> None:
    """A virtual machine that was saved while it ran, and resumed twice."""
    first, second = await twins(mesh, tmp_path)
    second.sync.instance = first.sync.instance
    async with following(first):
        await until(lambda: first.sync.contact.connected)
        async with following(second):
            await until(lambda: second.sync.contact.copied or first.sync.contact.copied)
            await asyncio.sleep(1)
            assert second.sync.contact.copied is not first.sync.contact.copied
            assert len((await listed(mesh, "a")).copies) == 1


async def test_a_copy_whose_agent_never_ran_takes_nobody_out(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "_NOTICED_WITHIN", 0.3)
    first, second = await twins(mesh, tmp_path)
    mine = second.identity.membership
    away = replace(mine, controllers=(*mine.controllers, "127.0.0.1:1"))
    copy, machine = replace(second.identity, membership=away), first.sync.host_id
    a_copy = Left(told=False, copy_of="a")
    async with following(first):
        await until(lambda: first.sync.contact.connected)
        assert await part(copy, machine, "", force=False) == a_copy
    assert await part(copy, "another machine", "", force=False) == a_copy, "though the node is not there"
    assert await mesh.nodes() == ["a"]
    assert await part(first.identity, machine, "", force=False) == Left(told=True)
    assert await mesh.nodes() == []


async def test_at_two_controllers_at_once(
    two: Two,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each of them can reach one controller only, and neither was there first."""
    caplog.set_level(logging.INFO)
    (one, _), (other, _) = await two.start("one"), await two.start("other")
    members = await twins(one, tmp_path)
    reaches = {id(member.sync): (address(mesh),) for member, mesh in zip(members, (one, other), strict=True)}
    monkeypatch.setattr(Sync, "controllers", property(lambda sync: reaches[id(sync)]))
    first, second = members
    async with following(first, second):
        await until(lambda: first.sync.contact.copied is not second.sync.contact.copied)
        await asyncio.sleep(3)
        assert first.sync.contact.copied is not second.sync.contact.copied
        stays = second if first.sync.contact.copied else first
        assert stays.sync.contact.connected
        assert not (first.sync.contact.connected and second.sync.contact.connected)
    assert connects(caplog) < 12


async def test_an_agent_that_is_restarted_is_no_copy(mesh: Mesh, tmp_path: Path) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    for _ in range(3):
        member = Member(config)
        async with following(member):
            await until(lambda member=member: member.sync.contact.connected)  # type: ignore[misc]
    node = await listed(mesh, "a")
    assert (list(node.copies), list(node.problems)) == ([], [])


async def test_undetected_they_do_not_storm(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an older controller."""

    async def nothing(*_: Any) -> None:
        pass

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Clones, "_quarantine_twin", nothing)
    first, second = await twins(mesh, tmp_path)
    async with following(first, second):
        await asyncio.sleep(8)
    assert connects(caplog) < 20


async def test_each_takeover_makes_the_next_pause_longer_until_there_was_peace(
    mesh: Mesh, tmp_path: Path
) -> None:
    config = host(tmp_path, "a")
    await joined(mesh, config)
    sync = Member(config).sync
    sync._quarrel = Backoff(random=lambda: 1.0)
    runs, pauses = {sync.instance}, []
    for _ in range(7):
        sync._note_replaced()
        runs.add(sync.instance)
        pauses.append(sync._pause(ReplacedError("taken over")))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30]
    assert len(runs) == 8, "each time it is another instance"
    assert sync._pause(UnreachableError("the controller was silent")) == 0
    sync.contact.turn(connected=True)
    sync.contact.since -= UNDISPUTED + 1
    sync._note_replaced()
    assert sync._pause(ReplacedError("taken over")) == 0.5
