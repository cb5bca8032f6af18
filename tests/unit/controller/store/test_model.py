"""Random histories: a store and the model must tell the same story."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from overmesh.controller.store.base import Compare, Delete, Op, Put, Store, Target, WatchBatch
from overmesh.errors import (
    CompactedError,
    FutureRevisionError,
    LeaseNotFoundError,
    StoreUnavailableError,
)
from tests.unit.controller.store.backends import BACKENDS, Backend
from tests.unit.controller.store.model import Model

T = TypeVar("T")

KEYS = ["a", "a\0", "a/", "a/b", "a0", "a\x7f", "a\x7f\x7f", "b"]
PREFIXES = ["", "a", "a/", "a\x7f", "b", "c"]
NUMBERS = st.integers(0, 1_000_000)  # taken modulo what there is to choose from

keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(PREFIXES)
values = st.binary(max_size=2)
compares = st.lists(st.tuples(keys, st.sampled_from(Target), st.integers(0, 3), values), max_size=2)
ops = st.dictionaries(keys, st.none() | st.tuples(values, NUMBERS), min_size=1, max_size=4)


class StoreMachine(RuleBasedStateMachine):
    """Does the same to both and compares the answers; watches are compared before a store is closed."""

    make_backend: Callable[[Path], Backend]
    runner: asyncio.Runner
    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.backend = type(self).make_backend(Path(tempfile.mkdtemp(dir=self.directory)))
        self.granted = 0
        self.watches: list[tuple[AsyncIterator[WatchBatch], str, int]] = []

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    @initialize(past=st.lists(ops, min_size=4, max_size=12))
    def start(self, past: list[dict[str, tuple[bytes, int] | None]]) -> None:
        self.store = self.run(self.opened())
        self.model = Model(self.run(self.store.range("")).revision)
        for ops in past:
            self.change(ops)

    def teardown(self) -> None:
        self.close()

    async def opened(self) -> Store:
        return self.backend.open()

    def pick(self, number: int, oldest: int = 0) -> int:
        """Return some revision, sometimes one that is refused."""
        return oldest + number % (self.model.revision - oldest + 2)

    def lease(self, number: int) -> int:
        known = [0, 0, *self.model.ttls, 1 << 40]
        return known[number % len(known)]

    @rule(compares=compares, ops=ops)
    def txn(
        self, compares: list[tuple[str, Target, int, bytes]], ops: dict[str, tuple[bytes, int] | None]
    ) -> None:
        checks = [self.compare(*compare) for compare in compares]
        changes: list[Op] = [
            Put(key, put[0], self.lease(put[1])) if put else Delete(key) for key, put in ops.items()
        ]
        succeeds = all(self.model.holds(check) for check in checks)
        leases = {op.lease for op in changes if isinstance(op, Put)} - {0}
        if succeeds and not leases <= set(self.model.ttls):
            with pytest.raises(LeaseNotFoundError):
                self.run(self.store.txn(checks, changes))
            return
        before = self.model.revision
        result = self.run(self.store.txn(checks, changes))
        if succeeds:
            self.model.apply(changes)
        assert result.succeeded == succeeds
        if self.model.revision > before:
            assert result.revision == self.model.revision
        else:
            seen = [self.model.current.get(check.key) for check in checks if not succeeds]
            assert max((kv.mod_revision for kv in seen if kv), default=0) <= result.revision <= before

    @rule(ops=ops)
    def change(self, ops: dict[str, tuple[bytes, int] | None]) -> None:
        self.txn([], {key: put and (put[0], 0) for key, put in ops.items()})

    @precondition(lambda self: self.model.current)
    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        present = sorted(self.model.current)
        self.txn([], {present[number % len(present)]: None})

    def compare(self, key: str, target: Target, back: int, value: bytes) -> Compare:
        """Return a comparison that often holds."""
        kv = self.model.current.get(key)
        if target is Target.VALUE:
            return Compare(key, target, kv.value if kv and back else value)
        truth = {Target.CREATE: "create_revision", Target.MOD: "mod_revision", Target.VERSION: "version"}
        return Compare(key, target, max(0, getattr(kv, truth[target], 1) - back // 2))

    @rule(prefix=prefixes, after=st.just("") | keys, limit=st.integers(0, 4), number=NUMBERS)
    def range(self, prefix: str, after: str, limit: int, number: int) -> None:
        revision = self.pick(number)
        call = partial(self.store.range, prefix, after=after, limit=limit, revision=revision)
        if 0 < revision < self.model.compacted:
            with pytest.raises(CompactedError):
                self.run(call())
        elif revision > self.model.revision:
            with pytest.raises(FutureRevisionError):
                self.run(call())
        elif not 0 < revision < self.model.first:
            result, expected = self.run(call()), self.model.range(prefix, after, revision)
            assert list(result.kvs) == expected[: limit or None]
            assert result.more == (bool(limit) and len(expected) > limit)
            assert result.revision == self.model.revision

    @rule(number=NUMBERS)
    def compact(self, number: int) -> None:
        revision = self.pick(number, oldest=self.model.first)
        if revision < self.model.compacted:
            with pytest.raises(CompactedError):
                self.run(self.store.compact(revision))
        elif revision > self.model.revision:
            with pytest.raises(FutureRevisionError):
                self.run(self.store.compact(revision))
        elif revision > self.model.compacted:
            self.run(self.store.compact(revision))
            self.model.compacted = revision

    @rule(prefix=prefixes, number=NUMBERS)
    def watch(self, prefix: str, number: int) -> None:
        start = self.pick(number, oldest=self.model.first)
        watch = self.run(self.watching(prefix, start))
        if start < self.model.compacted:
            with pytest.raises(CompactedError):
                self.run(everything(watch))
        else:
            self.watches.append((watch, prefix, start))

    @rule(prefix=prefixes)
    def watch_from_now(self, prefix: str) -> None:
        self.watches.append((self.run(self.watching(prefix, 0)), prefix, self.model.revision + 1))

    async def watching(self, prefix: str, start: int) -> AsyncIterator[WatchBatch]:
        return self.store.watch(prefix, start)

    @rule()
    def grant(self) -> None:
        self.granted += 1
        ttl = 1000 + self.granted  # all different, so that no two expire at once
        lease = self.run(self.store.grant(ttl))
        assert lease not in self.model.ttls
        self.model.ttls[lease] = ttl
        self.model.deadlines[lease] = self.model.now + ttl

    @precondition(lambda self: self.model.ttls)
    @rule(number=NUMBERS)
    def keepalive(self, number: int) -> None:
        lease = sorted(self.model.ttls)[number % len(self.model.ttls)]
        assert self.run(self.store.keepalive(lease)) == self.model.ttls[lease]
        self.model.deadlines[lease] = self.model.now + self.model.ttls[lease]

    @precondition(lambda self: self.model.ttls)
    @rule(number=NUMBERS)
    def revoke(self, number: int) -> None:
        lease = sorted(self.model.ttls)[number % len(self.model.ttls)]
        self.run(self.store.revoke(lease))
        self.model.revoke(lease)

    @precondition(lambda self: self.model.ttls and self.backend.turns_the_clock)
    @rule(expire=st.booleans())
    def pass_time(self, expire: bool) -> None:
        left = min(self.model.deadlines.values()) - self.model.now
        seconds = left if expire else left // 2
        self.run(self.backend.expire(self.store, seconds))
        self.model.pass_time(seconds)

    @rule()
    def restart(self) -> None:
        self.close()
        self.store = self.run(self.opened())
        if self.backend.turns_the_clock:
            self.model.restart()

    @invariant()
    def the_present_is_the_same(self) -> None:
        result = self.run(self.store.range(""))
        assert {kv.key: kv for kv in result.kvs} == self.model.current
        assert result.revision == self.model.revision

    def close(self) -> None:
        """Check that each watch tells all of it, once, in order, and then that the store was closed."""
        told = [self.told(*watch) for watch in self.watches]
        self.run(self.store.close())
        for (watch, _, _), complete in zip(self.watches, told, strict=True):
            if complete:
                assert self.run(everything(watch)) == []
        self.watches.clear()

    def told(self, watch: AsyncIterator[WatchBatch], prefix: str, start: int) -> bool:
        """Check what a watch tells; return whether it is all, and not cut off by a compaction."""
        expected = self.model.watched(prefix, start)
        batches = self.run(taken(watch, len(expected)))
        assert batches == expected[: len(batches)]
        if len(batches) < len(expected):
            assert self.backend.may_be_overtaken
            assert start < self.model.compacted
        return len(batches) == len(expected) and not (self.backend.may_be_overtaken and self.model.compacted)


async def taken(watch: AsyncIterator[WatchBatch], count: int) -> list[WatchBatch]:
    """Return so many batches; fewer if a compaction has overtaken the watch."""
    batches: list[WatchBatch] = []
    with suppress(CompactedError):
        async with asyncio.timeout(20):
            while len(batches) < count:
                batches.append(await anext(watch))
    return batches


async def everything(watch: AsyncIterator[WatchBatch]) -> list[WatchBatch]:
    batches: list[WatchBatch] = []
    try:
        async for batch in watch:
            batches.append(batch)
    except StoreUnavailableError:
        return batches
    pytest.fail("a watch ended without a reason")


@pytest.mark.parametrize(("name", "examples"), [("sqlite", 40), ("etcd", 15)])
def test_the_store_does_what_the_model_does(name: str, examples: int, tmp_path: Path) -> None:
    class Machine(StoreMachine):
        directory = tmp_path
        make_backend = staticmethod(BACKENDS[name])

    # One loop for all: gRPC goes on using the first that it has met.
    with asyncio.Runner() as Machine.runner:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
