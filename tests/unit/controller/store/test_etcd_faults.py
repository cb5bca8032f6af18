"""Three members, killed and frozen under writers, readers and watches: the contract holds throughout."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from overmesh.controller.store import open_store
from overmesh.controller.store.base import Compare, Put, Store, Target, WatchBatch
from overmesh.controller.store.etcd import members as members_module
from overmesh.errors import StoreUnavailableError, UnconfirmedError
from tests.etcd import Member, cluster

WRITERS = 4


@dataclass
class History:
    """All that clients were told."""

    acked: dict[tuple[str, bytes], int] = field(default_factory=dict)
    ambiguous: set[tuple[str, bytes]] = field(default_factory=set)
    seen_revisions: list[int] = field(default_factory=list)
    watched: list[list[WatchBatch]] = field(default_factory=list)

    def check(self, final: dict[str, bytes]) -> None:
        """Raise AssertionError for anything that the contract rules out."""
        assert self.seen_revisions == sorted(self.seen_revisions), "a revision went back"
        first = self.watched[0]
        assert all(batches == first for batches in self.watched), "two watches tell different stories"
        revisions = [batch.revision for batch in first]
        assert revisions == sorted(set(revisions)), "a revision was told twice, or late"
        told = {
            (event.key, event.kv.value): batch.revision
            for batch in first
            for event in batch.events
            if event.kv
        }
        assert sum(len(batch.events) for batch in first) == len(told), "a change was told twice"
        assert {change: told.get(change) for change in self.acked} == self.acked, "an acked change is lost"
        assert told.keys() <= self.acked.keys() | self.ambiguous, "a change that nobody made"
        state = {event.key: event.kv.value for batch in first for event in batch.events if event.kv}
        assert state == final, "the story does not lead to the end"


@asynccontextmanager
async def opened(target: str) -> AsyncIterator[Store]:
    store = open_store(target)
    try:
        yield store
    finally:
        await store.close()


async def write(store: Store, writer: int, history: History, stop: asyncio.Event) -> None:
    key, number = f"/{writer}", 0
    while not stop.is_set():
        number += 1
        change = (key, b"%d" % number)
        try:
            result = await store.txn((), [Put(*change), Put(f"{key}/{number}", b"")])
            history.acked[change] = history.acked[f"{key}/{number}", b""] = result.revision
        except UnconfirmedError:
            history.ambiguous |= {change, (f"{key}/{number}", b"")}
        except StoreUnavailableError:
            pass  # it has not happened: the check holds us to that
        await asyncio.sleep(0.005)


async def read(store: Store, history: History, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with suppress(StoreUnavailableError):
            history.seen_revisions.append((await store.range("/", limit=1)).revision)
        await asyncio.sleep(0.02)


async def watch(store: Store, start: int) -> list[WatchBatch]:
    """Return everything up to the key /end."""
    batches = []
    async for batch in store.watch("/", start):
        batches.append(batch)
        if batch.events[0].key == "/end":
            break
    return batches


async def harm(members: list[Member], history: History) -> list[int]:
    """Kill and freeze one after the other; return how many changes were acked in each trouble."""
    progress = []
    for number, member in enumerate(members):
        before = len(history.acked)
        if number == 1:
            member.freeze()
            await asyncio.sleep(8)
            member.thaw()
        else:
            member.kill()
            await asyncio.sleep(6)
            member.start()
        progress.append(len(history.acked) - before)
        await asyncio.to_thread(member.wait_ready)
    return progress


async def end(store: Store, history: History) -> None:
    """Write the key /end until that is acked."""
    while ("/end", b"") not in history.acked:
        with suppress(StoreUnavailableError):
            result = await store.txn([Compare("/end", Target.CREATE, 0)], [Put("/end", b"")])
            kv = await store.get("/end")
            history.acked["/end", b""] = result.revision if result.succeeded else kv.mod_revision if kv else 0


async def test_members_killed_and_frozen(tmp_path: Path) -> None:
    history, stop = History(), asyncio.Event()
    with cluster(tmp_path, 3) as members:
        target = f"etcd://{','.join(member.endpoint for member in members)}/mesh"
        async with opened(target) as writing, opened(target) as reading, opened(target) as other:
            start = (await reading.range("/")).revision + 1
            watching = [asyncio.create_task(watch(store, start)) for store in (writing, reading, other)]
            busy = [asyncio.create_task(write(writing, number, history, stop)) for number in range(WRITERS)]
            busy.append(asyncio.create_task(read(reading, history, stop)))
            progress = await harm(members, history)
            stop.set()
            await asyncio.gather(*busy)
            await end(writing, history)
            async with asyncio.timeout(20):
                history.watched = await asyncio.gather(*watching)
            final = {kv.key: kv.value for kv in (await reading.range("/")).kvs}
    history.check(final)
    assert all(progress), f"two of three members, and no change was taken: {progress}"


@pytest.mark.parametrize("freeze", [False, True])
async def test_no_quorum(tmp_path: Path, freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "RETRY_LIMIT", 2.0)
    with cluster(tmp_path, 3) as members:
        target = f"etcd://{','.join(member.endpoint for member in members)}/mesh"
        async with opened(target) as store:
            start = (await store.txn((), [Put("/a", b"1")])).revision
            watching = store.watch("/", start)
            await anext(watching)
            for member in members[1:]:
                member.freeze() if freeze else member.kill()
            with pytest.raises(
                StoreUnavailableError, match=r"may or may not|does not answer|can't be reached"
            ):
                await store.txn((), [Put("/b", b"")])
            with pytest.raises(StoreUnavailableError):
                await store.get("/a")  # never what may be old
            for member in members[1:]:
                member.thaw() if freeze else member.start()
            async with asyncio.timeout(30):
                while not await attempt(store):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                assert (await anext(watching)).events[0].key in {"/b", "/c"}


async def attempt(store: Store) -> bool:
    try:
        return (await store.txn((), [Put("/c", b"")])).succeeded
    except StoreUnavailableError:
        return False


def test_the_checker_sees_what_it_is_for() -> None:
    from overmesh.controller.store.base import Event, KeyValue

    def batch(revision: int, value: bytes) -> WatchBatch:
        return WatchBatch(revision, (Event("/0", KeyValue("/0", value, 2, revision, 1)),))

    good = [batch(2, b"1"), batch(3, b"2")]
    acked = {("/0", b"1"): 2, ("/0", b"2"): 3}
    History(acked, set(), [2, 2, 3], [good, good]).check({"/0": b"2"})
    for bad in (
        History(acked, set(), [3, 2], [good]),
        History(acked, set(), [], [good, good[:1]]),
        History(acked, set(), [], [good[:1]]),
        History(acked, set(), [], [[*good, good[1]]]),
        History({("/0", b"1"): 2}, set(), [], [good]),
        History(acked | {("/0", b"3"): 4}, set(), [], [good]),
    ):
        with pytest.raises(AssertionError):
            bad.check({"/0": b"2"})
