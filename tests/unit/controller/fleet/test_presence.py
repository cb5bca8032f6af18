import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from overmesh.controller.fleet.presence import PAUSE, Health, Presence, read_health
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put, WatchBatch
from overmesh.controller.trust import Identity
from tests.unit.controller.lab import Mesh, mesh

NODE = Identity("mesh", "abc")
KEY = keys.presence("mesh", "abc")
HEALTH = Health("tun", "nothing faster here", 1400)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        writing = asyncio.create_task(here.presence.keep_written())
        yield here
        writing.cancel()


async def written(lab: Mesh, *, there: bool) -> KeyValue | None:
    async with asyncio.timeout(5):
        while bool(lab.mirror.key(KEY)) is not there:
            await lab.mirror.reached(lab.mirror.revision + 1)
    return lab.mirror.key(KEY)


async def test_what_a_node_reports_is_told_while_it_is_there(lab: Mesh) -> None:
    lab.presence.reported(NODE, HEALTH)
    lab.presence.seen(NODE, True)
    assert read_health(await written(lab, there=True)) == HEALTH
    other = Presence(lab.mirror, lab.lease)
    assert other.health(NODE) == HEALTH
    lab.presence.seen(NODE, False)
    await written(lab, there=False)
    assert lab.presence.health(NODE) == HEALTH
    assert other.health(NODE) == Health()


async def test_crowds_are_written_in_batches(lab: Mesh) -> None:
    before = lab.mirror.revision
    for number in range(450):
        lab.presence.seen(Identity("mesh", f"n{number}"), True)
    async with asyncio.timeout(5):
        while len(lab.mirror.held("presence", "mesh")) < 450:
            await lab.mirror.reached(lab.mirror.revision + 1)
    assert lab.mirror.revision == before + 5


async def test_a_stream_of_changes_is_written_in_batches(lab: Mesh) -> None:
    before, began = lab.mirror.revision, time.monotonic()
    for number in range(50):
        lab.presence.seen(Identity("mesh", f"n{number}"), True)
        await asyncio.sleep(0.004)
    async with asyncio.timeout(5):
        while len(lab.mirror.held("presence", "mesh")) < 50:
            await lab.mirror.reached(lab.mirror.revision + 1)
    assert lab.mirror.revision - before <= 1 + (time.monotonic() - began) / PAUSE


async def test_an_end_takes_everything_back(lab: Mesh) -> None:
    lab.presence.seen(NODE, True)
    await written(lab, there=True)
    await lab.lease.end()
    await written(lab, there=False)


async def test_after_its_lease_was_lost_everything_is_said_again(lab: Mesh) -> None:
    lab.presence.seen(NODE, True)
    first = await written(lab, there=True)
    assert first
    await lab.store.revoke(first.lease)
    await written(lab, there=False)
    lab.presence.seen(Identity("mesh", "other"), True)
    again = await written(lab, there=True)
    assert again
    assert again.lease != first.lease


async def test_a_node_that_went_over_to_another_controller_stays_there(lab: Mesh) -> None:
    lab.presence.seen(NODE, True)
    await written(lab, there=True)
    elsewhere = await lab.store.grant(60)
    result = await lab.store.txn([], [Put(KEY, b'{"controller": "other"}', elsewhere)])
    await lab.mirror.reached(result.revision)
    lab.presence.seen(NODE, False)
    lab.presence.seen(Identity("mesh", "later"), True)
    async with asyncio.timeout(5):
        while not lab.mirror.key(keys.presence("mesh", "later")):
            await lab.mirror.reached(lab.mirror.revision + 1)
    kv = lab.mirror.key(KEY)
    assert kv
    assert kv.lease == elsewhere


async def test_a_node_that_goes_over_while_we_say_that_it_left_stays_there(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other controller has written is not known here yet."""
    lab.presence.seen(NODE, True)
    await written(lab, there=True)
    take = lab.mirror._take
    waiting: list[WatchBatch] = []
    monkeypatch.setattr(lab.mirror, "_take", waiting.append)
    elsewhere = await lab.store.grant(60)
    await lab.store.txn([], [Put(KEY, b'{"controller": "other"}', elsewhere)])
    lab.presence.seen(NODE, False)
    await asyncio.sleep(0.4)
    monkeypatch.setattr(lab.mirror, "_take", take)
    for batch in waiting:
        take(batch)
    await asyncio.sleep(0.4)
    kv = await lab.store.get(KEY)
    assert kv
    assert kv.lease == elsewhere


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b'{"backend": "tun"}'])
def test_garbage_tells_nothing(value: bytes) -> None:
    assert read_health(KeyValue(KEY, value, 1, 1, 1)) == Health()
