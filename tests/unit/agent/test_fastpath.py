import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from overmesh.agent.fastpath import BINARY, Fastpath, find_binary
from overmesh.config import AgentConfig
from overmesh.errors import FastpathError
from overmesh.model import FastpathState
from tests.unit.agent.test_desired import desired

ROOT = Path(__file__).parents[3]
FAKE = f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tests.unit.agent.fake_fastpath "$@"\n'
REAL = ROOT / "fastpath" / "target" / "release" / BINARY
STATE = desired().fastpath


def program(directory: Path, script: str) -> Path:
    path = directory / BINARY
    path.write_text(script)
    path.chmod(0o755)
    return path


def settings(directory: Path, script: str = FAKE) -> AgentConfig:
    return AgentConfig(runtime_dir=directory / "run", fastpath=str(program(directory, script)))


@asynccontextmanager
async def supervised(config: AgentConfig, log: Path) -> AsyncIterator[Fastpath]:
    """Run the supervisor for the length of a block."""
    fastpath = Fastpath(config, log, lambda: None)
    task = asyncio.create_task(fastpath.run())
    try:
        yield fastpath
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def started(directory: Path, script: str = FAKE) -> AsyncIterator[Fastpath]:
    async with supervised(settings(directory, script), directory / "log") as fastpath:
        try:
            await until(lambda: fastpath.running)
            yield fastpath
        finally:
            await until(lambda: fastpath.running)
            await fastpath.shutdown()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


async def test_it_is_started_and_told(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        stats = await fastpath.stats()
        assert (stats.backend, os.getsid(stats.pid), fastpath.restarts) == ("fake", stats.pid, 0)
        assert await fastpath.applied() is None
        await fastpath.apply(STATE)
        assert await fastpath.applied() == STATE


async def test_what_somebody_else_gave_it_is_not_what_we_did(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        await fastpath.apply(STATE)
        async with supervised(settings(tmp_path), tmp_path / "log") as other:
            await until(lambda: other.running)
            await other.apply(replace(STATE, mtu=1000))
        assert await fastpath.applied() is None


def moved(state: FastpathState, revision: int) -> FastpathState:
    """Return a state in which the first peer is new and another one came."""
    first, *rest = state.peers
    came = replace(first, id=f"n{revision}")
    return replace(state, revision=revision, peers=(replace(first, name="moved"), *rest, came))


async def test_what_changes_is_given_as_a_change(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        await fastpath.apply(STATE)
        for state in (moved(STATE, 6), moved(STATE, 7), STATE):
            await fastpath.apply(state)
            assert await fastpath.applied() == state
        assert (await fastpath.stats()).backend_reason == "3 changes, 1 peers"


async def test_who_has_something_else_is_given_the_whole(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        await fastpath.apply(STATE)
        async with supervised(settings(tmp_path), tmp_path / "log") as other:
            await until(lambda: other.running)
            await other.apply(replace(STATE, peers=()))
        await fastpath.apply(moved(STATE, 6))
        assert await fastpath.applied() == moved(STATE, 6)
        assert (await fastpath.stats()).backend_reason == "0 changes, 2 peers"


async def test_one_of_an_earlier_version_is_always_given_the_whole(tmp_path: Path) -> None:
    async with started(tmp_path, FAKE.replace("exec", "EARLIER=1 exec")) as fastpath:
        for state in (STATE, moved(STATE, 6)):
            await fastpath.apply(state)
            assert await fastpath.applied() == state
        assert (await fastpath.stats()).backend_reason == "0 changes, 2 peers"


async def test_killed_it_is_started_again_and_knows_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        await fastpath.apply(STATE)
        first = (await fastpath.stats()).pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: fastpath.restarts >= 1)
        assert fastpath.error == "it ended (killed by SIGKILL)"
        await until(lambda: fastpath.running)
        assert (await fastpath.stats()).pid != first
        assert await fastpath.applied() is None
        assert not exists(first), "no zombie is left"


async def test_an_agent_that_ends_leaves_it_and_the_next_adopts_it(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with supervised(config, tmp_path / "log") as fastpath:
        await until(lambda: fastpath.running)
        await fastpath.apply(STATE)
        pid = (await fastpath.stats()).pid
    assert alive(pid)
    async with supervised(config, tmp_path / "log") as fastpath:
        await until(lambda: fastpath.running)
        stats = await fastpath.stats()
        assert (stats.pid, stats.revision) == (pid, STATE.revision), "it carried packets all the time"
        await fastpath.shutdown()
        await until(lambda: not alive(pid) and not fastpath.running)
    assert fastpath.restarts == 0


async def test_one_that_was_found_with_other_offloads_is_started_anew(tmp_path: Path) -> None:
    config = settings(tmp_path)
    without = replace(config, no_offload=("uso",))
    pids = []
    for wanted, restarts in ((config, 0), (without, 1), (without, 0), (config, 1)):
        async with supervised(wanted, tmp_path / "log") as fastpath:
            await until(lambda: fastpath.running and fastpath.restarts == restarts)  # noqa: B023
            stats = await fastpath.stats()
            assert [entry.name for entry in stats.offloads if entry.unwanted] == list(wanted.no_offload)
            assert fastpath.error == ("it ended (for another no_offload)" if restarts else "")
            pids.append(stats.pid)
    assert len(set(pids)) == 3
    assert pids[1] == pids[2]
    async with supervised(config, tmp_path / "log") as fastpath:
        await until(lambda: fastpath.running)
        await fastpath.shutdown()


async def test_a_question_that_it_dies_under_is_an_error_not_the_end_of_the_asker(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        pid = (await fastpath.stats()).pid
        asking = asyncio.create_task(fastpath.probe("slow", 10))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(FastpathError):
            await asking


async def test_what_it_refuses_is_said(tmp_path: Path) -> None:
    async with started(tmp_path) as fastpath:
        with pytest.raises(FastpathError, match="no interface refused"):
            await fastpath.apply(replace(STATE, tun="refused"))


async def test_a_fastpath_that_can_not_start_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    config = settings(tmp_path, "#!/bin/sh\necho starting\necho no luck >&2\nexit 3\n")
    async with supervised(config, tmp_path / "log") as fastpath:
        began = time.monotonic()
        await until(lambda: fastpath.restarts >= 4)
        assert time.monotonic() - began >= 0.1 + 0.2
        assert fastpath.error == f"{config.fastpath}: exit code 3: no luck"
        with pytest.raises(FastpathError, match=r"is not running: .*no luck"):
            await fastpath.stats()
        await fastpath.shutdown()


async def test_its_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "fastpath.log"
    with log.open("wb") as file:
        file.truncate((8 << 20) + 1)
    async with supervised(settings(tmp_path, "#!/bin/sh\necho anew\nexit 1\n"), log) as fastpath:
        await until(lambda: fastpath.restarts >= 1)
    assert set(log.read_text().split()) == {"anew"}
    assert log.with_suffix(".log.old").stat().st_size > 8 << 20


@pytest.mark.skipif(not REAL.exists(), reason="the fastpath is not built")
async def test_the_real_one_answers_is_killed_and_answers_again(tmp_path: Path) -> None:
    config = AgentConfig(runtime_dir=tmp_path / "run", fastpath=str(REAL), no_offload=("uso", "gro"))
    async with supervised(config, tmp_path / "log") as fastpath:
        await until(lambda: fastpath.running)
        pid = (await fastpath.stats()).pid
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        await until(lambda: fastpath.restarts == 1 and fastpath.running)
        assert time.monotonic() - began < 1
        stats = await fastpath.stats()
        assert stats.pid != pid
        assert {entry.name for entry in stats.offloads if entry.reason == "switched off"} == {"uso", "gro"}
        await fastpath.shutdown()


def test_the_binary_is_where_the_configuration_says(tmp_path: Path) -> None:
    path = program(tmp_path, FAKE)
    assert find_binary(str(path)) == path
    path.chmod(0o644)
    with pytest.raises(FastpathError, match="is not a program"):
        find_binary(str(path))


def test_the_binary_is_found_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, FAKE)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert find_binary("") == path
