"""What base.py promises, sentence by sentence, for every store."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from overmesh.controller.store.base import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Op,
    Put,
    Store,
    Target,
    TxnResult,
    WatchBatch,
    absent,
    unchanged,
)
from overmesh.controller.store.feed import Feed
from overmesh.controller.store.history import trim_history
from overmesh.errors import (
    CompactedError,
    FutureRevisionError,
    LeaseNotFoundError,
    StoreUnavailableError,
)
from tests.unit.controller.store.backends import Backend

AWKWARD = [
    "\0",
    "\0\0",
    " ",
    "-",
    "/",
    "/a",
    "/a\0",
    "/a\0b",
    "/a ",
    "/a/",
    "/a/b",
    "/a0",
    "/a\x7f",
    "/a\x7f\x7f",
]
AWKWARD += ["/a~", "/b", "0", "A", "a", "~", "~~", "\x7f", "\x7f\x7f"]


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    return (await store.txn((), [Put(key, value, lease)])).revision


async def head(store: Store) -> int:
    return (await store.range("", limit=1)).revision


async def keys(store: Store, prefix: str = "", revision: int = 0) -> list[str]:
    return [kv.key for kv in (await store.range(prefix, revision=revision)).kvs]


async def take(watch: AsyncIterator[WatchBatch], count: int) -> list[WatchBatch]:
    return [await anext(watch) for _ in range(count)]


async def is_silent(store: Store, watch: AsyncIterator[WatchBatch]) -> bool:
    """Tell whether the watch has nothing to say before a change that is made now."""
    revision = await put(store, "/sentinel")
    return (await anext(watch)).revision == revision


class TestTxn:
    async def test_a_change_gets_the_next_revision(self, store: Store) -> None:
        before = await head(store)
        assert before > 0
        assert await store.txn((), [Put("/a", b"1")]) == TxnResult(True, before + 1)
        assert await store.txn((), [Put("/a", b"1")]) == TxnResult(True, before + 2)
        assert await head(store) == before + 2

    async def test_all_changes_of_a_transaction_share_one_revision(self, store: Store) -> None:
        await put(store, "/gone")
        revision = (await store.txn((), [Put("/a", b"1"), Put("/b", b"2"), Delete("/gone")])).revision
        assert (await store.range("")).kvs == (
            KeyValue("/a", b"1", revision, revision, 1),
            KeyValue("/b", b"2", revision, revision, 1),
        )

    async def test_a_key_remembers_its_revisions(self, store: Store) -> None:
        created = await put(store, "/a", b"1")
        changed = await put(store, "/a", b"2")
        assert await store.get("/a") == KeyValue("/a", b"2", created, changed, 2)

    async def test_a_key_starts_again_after_a_delete(self, store: Store) -> None:
        await put(store, "/a")
        await store.txn((), [Delete("/a")])
        assert await store.get("/a") is None
        revision = await put(store, "/a", b"again")
        assert await store.get("/a") == KeyValue("/a", b"again", revision, revision, 1)

    @pytest.mark.parametrize("ops", [[], [Delete("/absent")], [Delete("/absent"), Delete("/absent too")]])
    async def test_changing_nothing_takes_no_revision(self, store: Store, ops: list[Op]) -> None:
        before = await put(store, "/a")
        assert await store.txn((), ops) == TxnResult(True, before)
        assert await head(store) == before

    async def test_one_failing_comparison_stops_all_ops(self, store: Store) -> None:
        before = await put(store, "/a")
        result = await store.txn([absent("/b"), absent("/a")], [Put("/b", b""), Delete("/a")])
        assert result == TxnResult(False, before)
        assert await keys(store) == ["/a"]

    async def test_comparisons_of_a_key(self, store: Store) -> None:
        created = await put(store, "/a", b"1")
        changed = await put(store, "/a", b"2")
        truth: dict[Target, int | bytes] = {
            Target.CREATE: created,
            Target.MOD: changed,
            Target.VERSION: 2,
            Target.VALUE: b"2",
        }
        for target, value in truth.items():
            assert (await store.txn([Compare("/a", target, value)], ())).succeeded
            wrong = b"1" if isinstance(value, bytes) else value + 1
            assert not (await store.txn([Compare("/a", target, wrong)], ())).succeeded
            assert not (
                await store.txn([Compare("/a", target, b"" if target is Target.VALUE else 0)], ())
            ).succeeded

    @pytest.mark.parametrize("deleted", [False, True])
    async def test_comparisons_of_an_absent_key(self, store: Store, deleted: bool) -> None:
        if deleted:
            await store.txn((), [Put("/a", b"")])
            await store.txn((), [Delete("/a")])
        for target in (Target.CREATE, Target.MOD, Target.VERSION):
            assert (await store.txn([Compare("/a", target, 0)], ())).succeeded
            assert not (await store.txn([Compare("/a", target, 1)], ())).succeeded
        assert not (await store.txn([Compare("/a", Target.VALUE, b"")], ())).succeeded

    async def test_absent_and_unchanged(self, store: Store) -> None:
        assert (await store.txn([absent("/a")], [Put("/a", b"1")])).succeeded
        seen = await store.get("/a")
        assert seen
        assert not (await store.txn([absent("/a")], [Put("/a", b"2")])).succeeded
        assert (await store.txn([unchanged(seen)], [Put("/a", b"2")])).succeeded
        assert not (await store.txn([unchanged(seen)], [Put("/a", b"3")])).succeeded

    @pytest.mark.parametrize("ops", [[Put("/a", b"1"), Put("/a", b"2")], [Put("/a", b"1"), Delete("/a")]])
    async def test_one_key_twice_is_refused(self, store: Store, ops: list[Op]) -> None:
        before = await head(store)
        with pytest.raises(ValueError, match="/a"):
            await store.txn((), ops)
        assert await head(store) == before

    @pytest.mark.parametrize("key", ["", "/ü", "\x80", "\ud800"])
    async def test_keys_are_ascii(self, store: Store, key: str) -> None:
        with pytest.raises(ValueError, match="not a key"):
            await store.txn((), [Put(key, b"")])

    @pytest.mark.parametrize("value", [None, "text", 1])
    async def test_values_are_bytes(self, store: Store, value: Any) -> None:
        with pytest.raises(TypeError, match="not bytes"):
            await store.txn((), [Put("/a", value)])

    async def test_what_was_written_is_read(self, store: Store) -> None:
        for number in range(200):
            revision = await put(store, "/a", b"%d" % number)
            assert await store.get("/a") == KeyValue(
                "/a", b"%d" % number, revision - number, revision, number + 1
            )
            assert await head(store) == revision

    async def test_of_50_racing_claims_one_wins(self, store: Store) -> None:
        before = await head(store)
        claims = [store.txn([absent("/claim")], [Put("/claim", b"%d" % n)]) for n in range(50)]
        results = await asyncio.gather(*claims)
        winners = [number for number, result in enumerate(results) if result.succeeded]
        claimed = await store.get("/claim")
        assert claimed
        assert [b"%d" % number for number in winners] == [claimed.value]
        assert {result.revision for result in results} == {before + 1}

    async def test_counting_loses_no_step(self, store: Store) -> None:
        await put(store, "/count", b"0")

        async def count() -> None:
            for _ in range(10):
                done = False
                while not done:
                    seen = await store.get("/count")
                    assert seen
                    done = (
                        await store.txn([unchanged(seen)], [Put("/count", b"%d" % (int(seen.value) + 1))])
                    ).succeeded

        await asyncio.gather(*(count() for _ in range(8)))
        counted = await store.get("/count")
        assert counted
        assert (counted.value, counted.version) == (b"80", 81)

    async def test_giving_up_on_a_call_harms_nobody(self, store: Store) -> None:
        call = asyncio.ensure_future(store.txn((), [Put("/a", b"1")]))
        await asyncio.sleep(0)
        call.cancel()
        await put(store, "/b")
        assert await keys(store) in (["/a", "/b"], ["/b"])

    async def test_it_is_still_there_after_a_restart(self, backend: Backend) -> None:
        store = backend.open()
        await store.txn((), [Put("/a", b"\0\xff"), Put("/b", b"")])
        before = await store.range("")
        await store.close()
        store = backend.open()
        assert await store.range("") == before
        assert await put(store, "/c") == before.revision + 1
        await store.close()


class TestRange:
    async def test_an_empty_store(self, store: Store) -> None:
        result = await store.range("")
        assert (result.kvs, result.more) == ((), False)
        assert await store.range("", revision=result.revision) == result
        assert await store.get("/a") is None

    @pytest.mark.parametrize("past", [False, True])
    async def test_prefixes_and_pages_of_awkward_keys(self, store: Store, past: bool) -> None:
        await store.txn((), [Put(key, key.encode()) for key in AWKWARD])
        revision = await head(store) if past else 0
        if past:
            await store.txn((), [Delete(key) for key in AWKWARD])
        for prefix in ["", *AWKWARD]:
            expected = sorted(key for key in AWKWARD if key.startswith(prefix))
            assert await keys(store, prefix, revision=revision) == expected
            for after in ["", *AWKWARD]:
                result = await store.range(prefix, after=after, limit=3, revision=revision)
                rest = [key for key in expected if key > after]
                assert [kv.key for kv in result.kvs] == rest[:3]
                assert result.more == (len(rest) > 3)

    async def test_paging_through_one_revision_while_it_changes(self, store: Store) -> None:
        expected = [f"/{number:02}" for number in range(25)]
        await store.txn((), [Put(key, b"") for key in expected])
        page = first = await store.range("/", limit=10)
        seen = [kv.key for kv in page.kvs]
        while page.more:
            await store.txn((), [Put(seen[-1] + "x", b""), Delete("/24")])
            page = await store.range("/", after=seen[-1], limit=10, revision=first.revision)
            seen += [kv.key for kv in page.kvs]
        assert seen == expected

    async def test_the_past(self, store: Store) -> None:
        await put(store, "/a", b"1")
        first = await store.range("")
        await put(store, "/a", b"2")
        second = await store.range("")
        await store.txn((), [Delete("/a"), Put("/b", b"3")])
        assert (await store.range("", revision=first.revision)).kvs == first.kvs
        assert (await store.range("", revision=second.revision)).kvs == second.kvs
        assert (await store.range("", revision=first.revision - 1)).kvs == ()

    async def test_the_future_is_refused(self, store: Store) -> None:
        with pytest.raises(FutureRevisionError):
            await store.range("", revision=await head(store) + 1)

    async def test_rows_and_revision_agree_while_others_write(self, store: Store) -> None:
        await store.txn((), [Put("/a", b""), Put("/b", b"")])
        writing = asyncio.gather(*(store.txn((), [Put("/a", b""), Put("/b", b"")]) for _ in range(1000)))
        while not writing.done():
            result = await store.range("")
            assert {kv.mod_revision for kv in result.kvs} == {result.revision}
        await writing

    async def test_a_big_value(self, store: Store) -> None:
        value = bytes(range(256)) * 4000
        await put(store, "/big", value)
        found = await store.get("/big")
        assert found
        assert found.value == value


class TestWatch:
    async def test_changes_and_deletes_as_they_come(self, store: Store) -> None:
        watch = store.watch("/a", 0)
        first = await put(store, "/a", b"1")
        await put(store, "/b", b"not this")
        second = (await store.txn((), [Delete("/a"), Put("/ab", b"2"), Put("/b", b"")])).revision
        assert await take(watch, 2) == [
            WatchBatch(first, (Event("/a", KeyValue("/a", b"1", first, first, 1)),)),
            WatchBatch(second, (Event("/a", None), Event("/ab", KeyValue("/ab", b"2", second, second, 1)))),
        ]

    async def test_a_change_right_after_the_first_anext_is_seen(self, store: Store) -> None:
        await put(store, "/before")
        watch = store.watch("", 0)
        coming = asyncio.ensure_future(anext(watch))
        revision = await put(store, "/a")
        assert (await coming).revision == revision

    async def test_a_revision_is_never_split_or_merged(self, store: Store) -> None:
        live = store.watch("/", 0)
        start = await head(store) + 1
        for first in range(0, 300, 100):
            await store.txn((), [Put(f"/{number:03}", b"") for number in range(first, first + 100)])
        batches = await take(live, 3)
        assert [len(batch.events) for batch in batches] == [100, 100, 100]
        assert [batch.revision for batch in batches] == [start, start + 1, start + 2]
        assert await take(store.watch("/", start), 3) == batches

    async def test_the_past_is_replayed_as_it_was_told(self, store: Store) -> None:
        live = store.watch("", 0)
        start = await head(store) + 1
        await store.txn((), [Put("/z", b"1"), Put("/a", b"1")])
        await store.txn((), [Delete("/z"), Put("/a", b"2")])
        await store.txn((), [Put("/z", b"3")])
        told = await take(live, 3)
        for skipped in range(3):
            assert await take(store.watch("", start + skipped), 3 - skipped) == told[skipped:]

    async def test_a_range_and_the_watch_after_it_leave_no_gap(self, store: Store) -> None:
        writing = asyncio.gather(*(put(store, f"/{number}") for number in range(500)))
        seen = await store.range("")
        known = {kv.key for kv in seen.kvs}
        watch = store.watch("", seen.revision + 1)
        await writing
        while len(known) < 500:
            batch = await anext(watch)
            assert batch.revision > seen.revision
            new = {event.key for event in batch.events}
            assert not new & known
            known |= new

    async def test_from_a_revision_to_come(self, store: Store) -> None:
        start = await head(store) + 3
        watch = store.watch("", start)
        for number in range(4):
            await put(store, f"/{number}")
        assert [batch.revision for batch in await take(watch, 2)] == [start, start + 1]

    async def test_opened_before_or_during_thousands_of_writes_is_the_same(self, store: Store) -> None:
        start = await head(store) + 1
        before = store.watch("", start)
        during: list[AsyncIterator[WatchBatch]] = []

        async def write(caller: int) -> None:
            for number in range(100):
                await store.txn(
                    (), [Put(f"/{caller}", b"%d" % number), Put(f"/shared/{number}", b"%d" % caller)]
                )
                if number % 50 == caller:
                    during.append(store.watch("", start))

        await asyncio.gather(*(write(caller) for caller in range(20)))
        await put(store, "/last")
        told = await take(before, await head(store) + 1 - start)
        assert [batch.revision for batch in told] == list(range(start, start + len(told)))
        assert sum(len(batch.events) for batch in told) == 4001
        for watch in during:
            assert await take(watch, len(told)) == told

    async def test_giving_up_on_one_anext_loses_nothing(self, store: Store) -> None:
        watch = store.watch("", 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(watch)
        revision = await put(store, "/a")
        assert (await anext(watch)).revision == revision

    async def test_an_abandoned_watch_harms_nobody(self, store: Store) -> None:
        kept = store.watch("", 0)
        for _ in range(10):
            watch = store.watch("", 0)
            revision = await put(store, "/a")
            assert (await anext(watch)).revision == (await anext(kept)).revision == revision
            del watch
            gc.collect()
        assert await is_silent(store, kept)


class TestCompact:
    async def test_it_forgets_the_past_only(self, store: Store) -> None:
        await store.txn((), [Put("/old", b""), Put("/gone", b""), Put("/a", b"1")])
        await store.txn((), [Put("/a", b"2"), Delete("/gone")])
        point = await put(store, "/a", b"3")
        states = {point: await store.range("")}
        await put(store, "/a", b"4")
        states[point + 1] = await store.range("")
        await store.compact(point)
        assert await store.range("") == states[point + 1]
        for revision, state in states.items():
            assert (await store.range("", revision=revision)).kvs == state.kvs
        with pytest.raises(CompactedError) as caught:
            await store.range("", revision=point - 1)
        assert caught.value.oldest == point

    async def test_what_happened_at_it_is_still_told(self, store: Store) -> None:
        await store.txn((), [Put("/a", b""), Put("/b", b"")])
        point = (await store.txn((), [Delete("/a"), Put("/b", b"")])).revision
        told = await anext(store.watch("", point))
        await put(store, "/a")
        await store.compact(point)
        assert await anext(store.watch("", point)) == told
        assert await keys(store, revision=point) == ["/b"]

    async def test_what_went_before_stays_gone(self, store: Store) -> None:
        await put(store, "/a")
        await store.txn((), [Delete("/a")])
        point = await put(store, "/b")
        await store.compact(point)
        assert await keys(store, revision=point) == ["/b"]

    async def test_a_watch_reaches_back_to_it(self, store: Store) -> None:
        first = await put(store, "/a")
        await put(store, "/b")
        await put(store, "/a")
        await store.compact(first + 1)
        assert [batch.revision for batch in await take(store.watch("", first + 1), 2)] == [
            first + 1,
            first + 2,
        ]
        watch = store.watch("", first)
        for _ in range(2):
            with pytest.raises(CompactedError) as caught:
                await anext(watch)
            assert caught.value.oldest == first + 1

    async def test_a_running_watch_goes_on(self, store: Store) -> None:
        watch = store.watch("", 0)
        first = await put(store, "/a")
        assert (await anext(watch)).revision == first
        await put(store, "/a")
        await store.compact(first + 1)
        assert (await anext(watch)).revision == first + 1

    async def test_neither_twice_backwards_nor_the_future(self, store: Store) -> None:
        await put(store, "/a")
        point = await put(store, "/a")
        await store.compact(point)
        with pytest.raises(CompactedError):
            await store.compact(point - 1)
        with pytest.raises(FutureRevisionError):
            await store.compact(point + 1)

    async def test_it_takes_no_revision(self, store: Store) -> None:
        point = await put(store, "/a")
        await store.compact(point)
        assert await head(store) == point

    async def test_it_survives_a_restart(self, backend: Backend) -> None:
        store = backend.open()
        await put(store, "/a")
        point = await put(store, "/a")
        await store.compact(point)
        await store.close()
        store = backend.open()
        with pytest.raises(CompactedError):
            await store.range("", revision=point - 1)
        await store.close()

    async def test_trimming_keeps_the_last_revisions(self, store: Store) -> None:
        await trim_history(store, keep=100)
        for _ in range(20):
            latest = await put(store, "/a")
        for _ in range(2):
            await trim_history(store, keep=5)
            assert len((await store.range("", revision=latest - 5)).kvs) == 1
            with pytest.raises(CompactedError):
                await store.range("", revision=latest - 6)


class TestLease:
    async def test_it_takes_its_keys_along_in_one_revision(self, backend: Backend, store: Store) -> None:
        lease = await store.grant(backend.ttl)
        await store.txn((), [Put("/a", b"", lease), Put("/b", b"", lease), Put("/c", b"")])
        found = await store.get("/a")
        assert found
        assert found.lease == lease
        watch = store.watch("", 0)
        before = await head(store)
        await backend.expire(store, backend.ttl)
        assert await anext(watch) == WatchBatch(before + 1, (Event("/a", None), Event("/b", None)))
        assert await keys(store) == ["/c"]
        assert await head(store) == before + 1

    async def test_it_lives_from_its_last_keepalive(self, backend: Backend, store: Store) -> None:
        lease = await store.grant(backend.ttl)
        await put(store, "/a", b"", lease)
        for _ in range(3):
            await backend.pass_time(store, 0.6 * backend.ttl)
            assert await store.keepalive(lease) == backend.ttl
        await backend.pass_time(store, 0.6 * backend.ttl)
        assert await keys(store) == ["/a"]
        await backend.expire(store, 0.4 * backend.ttl)
        assert await keys(store) == []

    async def test_too_late(self, backend: Backend, store: Store) -> None:
        lease = await store.grant(backend.ttl)
        await backend.expire(store, backend.ttl)
        before = await head(store)
        with pytest.raises(LeaseNotFoundError):
            await store.keepalive(lease)
        with pytest.raises(LeaseNotFoundError):
            await store.txn((), [Put("/a", b""), Put("/b", b"", lease)])
        assert await keys(store) == []
        assert await head(store) == before
        await store.revoke(lease)

    async def test_a_lease_that_never_was(self, store: Store) -> None:
        with pytest.raises(LeaseNotFoundError):
            await store.keepalive(4711)
        with pytest.raises(LeaseNotFoundError):
            await store.txn((), [Put("/a", b"", 4711)])

    async def test_revoking_deletes_its_keys_in_one_revision(self, backend: Backend, store: Store) -> None:
        lease, other = await store.grant(backend.ttl), await store.grant(backend.ttl)
        assert lease != other
        await store.txn((), [Put("/a", b"", lease), Put("/b", b"", lease), Put("/c", b"", other)])
        before = await head(store)
        await store.revoke(lease)
        assert await keys(store) == ["/c"]
        assert await head(store) == before + 1
        await store.revoke(lease)
        await store.revoke(await store.grant(backend.ttl))
        assert await head(store) == before + 1

    async def test_the_last_put_decides(self, backend: Backend, store: Store) -> None:
        lease = await store.grant(backend.ttl)
        await store.txn((), [Put("/kept", b"", lease), Put("/moved", b"")])
        await store.txn((), [Put("/kept", b""), Put("/moved", b"", lease)])
        await backend.expire(store, backend.ttl)
        assert await keys(store) == ["/kept"]


class TestClose:
    async def test_what_was_accepted_is_finished(self, backend: Backend) -> None:
        store = backend.open()
        accepted = [asyncio.ensure_future(put(store, f"/{number}")) for number in range(1000)]
        reading = asyncio.ensure_future(store.range(""))
        await asyncio.sleep(0)
        await store.close()
        assert all([await call for call in accepted])
        assert (await reading).revision > 0
        store = backend.open()
        assert len(await keys(store)) == 1000
        await store.close()

    async def test_everything_is_refused_then(self, backend: Backend) -> None:
        store = backend.open()
        await store.close()
        calls: list[Coroutine[Any, Any, object]] = [
            store.get("/a"),
            store.range(""),
            store.txn((), ()),
            store.compact(1),
            store.grant(1),
            store.keepalive(1),
            store.revoke(1),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError):
                await call
        with pytest.raises(StoreUnavailableError):
            await anext(store.watch("", 0))

    async def test_watches_tell_what_they_have_and_end(self, backend: Backend) -> None:
        store = backend.open()
        watch, idle = store.watch("", 0), store.watch("/idle", 0)
        waiting = asyncio.ensure_future(anext(idle))
        revision = await put(store, "/a")
        assert isinstance(watch, Feed)
        while not watch._batches:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await store.close()
        assert (await anext(watch)).revision == revision
        with pytest.raises(StoreUnavailableError):
            await anext(watch)
        with pytest.raises(StoreUnavailableError):
            await waiting

    async def test_twice_is_no_error(self, backend: Backend) -> None:
        store = backend.open()
        await asyncio.gather(store.close(), store.close())
        await store.close()
