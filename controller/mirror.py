"""The store's content in memory: read from here, change through here.

    store --range, then watch--> every key, one NetworkMap per network, verified records --> listeners

Whoever plans a change reads the mirror and compares what it read inside the transaction, so a mirror
that lags costs a second attempt and never a wrong change. A change is answered only after it has come
back through the watch: who made it will see it.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from overmesh import trace
from overmesh.controller.audit import Audit, Deed
from overmesh.controller.notices import Notices
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, KeyValue, Op, Store, TxnResult, WatchBatch, head
from overmesh.controller.store.turns import Turns
from overmesh.controller.trust.fresh import FreshSignatures
from overmesh.controller.view import Changes, Judge, NetworkView
from overmesh.errors import (
    CompactedError,
    NotFoundError,
    OvermeshError,
    StoreUnavailableError,
)
from overmesh.model import NETWORK_KEY, Record, root_key
from overmesh.proto.roots import Roots, is_root_key
from overmesh.proto.signed import read, verify

_ATTEMPTS = 32
# Further ones wait until there is room: they would only queue in the store's client.
_CHANGES_AT_ONCE = 256
# Seconds from a change to its coming back; a watch that has lost its member finds another in five.
_CATCH_UP = 10.0
# The "network" of what is in the map of all of them.
EVERYWHERE = ""
_NOTHING: Mapping[str, KeyValue] = MappingProxyType({})

Listener = Callable[[str, Changes], None]


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction to be: what has to hold, what to do then, and what that amounts to (see audit.py)."""

    compares: Sequence[Compare]
    ops: Sequence[Op]
    deed: Deed | None = None

    @property
    def written(self) -> Set[str]:
        """The keys that it changes."""
        return {op.key for op in self.ops}

    @property
    def keys(self) -> Set[str]:
        """Those, and the ones that it looks at."""
        return self.written | {compare.key for compare in self.compares}


class Mirror:
    """All keys of the store but the audit's, as of `revision`."""

    def __init__(
        self,
        store: Store,
        anchor: Roots,
        audit: Audit,
        clock: Callable[[], float] = time.time,
        fresh: FreshSignatures | None = None,
    ) -> None:
        self._store = store
        self._fresh = fresh or FreshSignatures()
        self._audit = audit
        self._anchor = self.roots = anchor
        self.notices = Notices(clock)
        self._judge = Judge(self._verified, clock, self.notices)
        self._kvs: dict[str, KeyValue] = {}
        self._held: defaultdict[tuple[str, str], dict[str, KeyValue]] = defaultdict(dict)
        self._views: dict[str, NetworkView] = {}
        self._everywhere = NetworkView(EVERYWHERE, 0, {}, self._judge)
        self._listeners: list[Listener] = []
        self._of_kind: defaultdict[str, list[Callable[[str, str], None]]] = defaultdict(list)
        # Keys that are being changed here -> traceparent of what changes them.
        self._traced: dict[str, str] = {}
        self._moved = asyncio.Event()
        self._turns = Turns()
        self._room = asyncio.Semaphore(_CHANGES_AT_ONCE)
        self.revision = 0

    # Reading.

    def key(self, key: str) -> KeyValue | None:
        """Return one key, or None."""
        return self._kvs.get(key)

    def everything(self) -> Iterable[KeyValue]:
        """Return all keys."""
        return self._kvs.values()

    def held(self, kind: str, network: str = "") -> Mapping[str, KeyValue]:
        """Return all of a kind ("nodes", "names", "tokens", …) in a network, by item."""
        return self._held.get((kind, network), _NOTHING)

    @property
    def networks(self) -> Sequence[NetworkView]:
        """The networks there are, by name."""
        views = (self._views[name] for name in sorted(self._views))
        return [view for view in views if NETWORK_KEY in view.map.items]

    def view(self, network: str) -> NetworkView:
        """Return a network.

        Raises:
            NotFoundError: there is none of that name.

        """
        view = self._views.get(network)
        if view is None or NETWORK_KEY not in view.map.items:
            raise NotFoundError(f"there is no network {network!r}", "see `meshctl network list`")
        return view

    async def reached(self, revision: int) -> None:
        """Return once the mirror shows the store as of that revision or later."""
        while self.revision < revision:
            await self._moved.wait()

    async def look_up(self, key: str) -> KeyValue | None:
        """Return a key. When it is not here the store is asked: another controller may just have written it.

        Raises:
            StoreUnavailableError: it can't say.

        """
        if not self.key(key) and keys.is_sound(key) and (there := await self._store.get(key)):
            await self._caught_up(there.mod_revision)
        return self.key(key)

    async def catch_up(self, revision: int) -> bool:
        """Reach a revision that somebody has seen; return False when the store has not come to it.

        Raises:
            StoreUnavailableError: it can't say.

        """
        if self.revision < revision:
            if await head(self._store) < revision:
                return False
            await self._caught_up(revision)
        return True

    # Changing.

    async def change(self, plan: Callable[[], Change | None]) -> TxnResult:
        """Carry out what `plan` proposes; when something changed in between, ask it again.

        Args:
            plan: reads the mirror; None when there is nothing to do. What it raises ends the attempt.

        Returns:
            Whether there was something to do, and the revision at which it holds; the mirror has reached it.

        Raises:
            StoreUnavailableError: others kept getting in between, or the store is gone. In the second
                case it may have happened or not: whoever asks again finds out.

        """
        entry = self._audit.next_key()
        async with self._room:
            for _ in range(_ATTEMPTS):
                planned_at = self.revision
                try:
                    change = plan()
                except OvermeshError:
                    # Perhaps because of what an earlier attempt has done after all.
                    if done := await self._done(entry):
                        await self._caught_up(done.revision)
                        return done
                    raise
                if change is None:
                    return await self._done(entry) or TxnResult(succeeded=False, revision=planned_at)
                if not self._turns.free(change.keys):
                    await self._turns.until_free(change.keys)
                    continue
                with self._turns.taking(change.written), self._tracing(change.written):
                    result = await self._txn(change, entry)
                    if result.succeeded:
                        await self._caught_up(result.revision)
                        return result
                # What came in between may be a delete, of which the store can't say when it was.
                await self._caught_up(max(result.revision, planned_at + 1))
        raise StoreUnavailableError("other controllers kept changing the same thing", "try again")

    async def _txn(self, change: Change, entry: str) -> TxnResult:
        compares, ops = self._audit.entry(entry, change.deed, change.ops)
        result = await self._store.txn([*change.compares, *compares], [*change.ops, *ops])
        return result if result.succeeded else await self._done(entry) or result

    @contextmanager
    def _tracing(self, written: Set[str]) -> Iterator[None]:
        """Have what comes back under these keys meanwhile be part of the trace that this is part of."""
        if trace.on():
            self._traced |= dict.fromkeys(written, trace.current())
        try:
            yield
        finally:
            for key in written:
                self._traced.pop(key, None)

    async def _done(self, key: str) -> TxnResult | None:
        """Return the result of an earlier attempt at the same request, whose answer was lost."""
        entry = await self._audit.done(key)
        return TxnResult(succeeded=True, revision=entry.revision) if entry else None

    async def _caught_up(self, revision: int) -> None:
        if self.revision >= revision:
            return
        try:
            async with asyncio.timeout(_CATCH_UP):
                await self.reached(revision)
        except TimeoutError:
            cause = f"the store does not tell its changes: {self.revision} is the last, {revision} has been"
            raise StoreUnavailableError(cause, "look, then try again") from None

    # Following.

    def on_change(self, listener: Listener) -> None:
        """Have `listener(network, changed peer map keys)` called after every change of a map."""
        self._listeners.append(listener)

    def on_kind(self, kind: str, listener: Callable[[str, str], None]) -> None:
        """Have `listener(network, item)` called after every change of one of a kind ("hosts", …)."""
        self._of_kind[kind].append(listener)

    async def load(self) -> None:
        """Read everything; what differs from before counts as one change."""
        found = await self._store.range(keys.PREFIX)
        now = {kv.key: kv for kv in found.kvs}
        changed: dict[str, KeyValue | None] = dict.fromkeys(self._kvs.keys() - now.keys())
        changed |= {key: kv for key, kv in now.items() if self._kvs.get(key) != kv}
        self._apply(found.revision, changed)

    async def follow(self) -> None:
        """Take in every change from here on, until the store is lost.

        Raises:
            StoreUnavailableError: it is.

        """
        while True:
            try:
                # Beyond what is held here, so that every revision of ours is come to.
                async for batch in self._store.watch(keys.OURS, self.revision + 1):
                    self._take(batch)
            except CompactedError:
                await self.load()

    def _take(self, batch: WatchBatch) -> None:
        held = (event for event in batch.events if event.key.startswith(keys.PREFIX))
        self._apply(batch.revision, {event.key: event.kv for event in held})

    def _apply(self, revision: int, changed: Mapping[str, KeyValue | None]) -> None:
        changes: defaultdict[str, dict[str, bytes | None]] = defaultdict(dict)
        followed: list[keys.Place] = []
        for key, kv in changed.items():
            self._set(key, kv)
            place = keys.parse(key)
            if place is None:
                continue
            self._hold(place, kv)
            if place.kind in self._of_kind:
                followed.append(place)
            if place.map_key:
                changes[place.network][place.map_key] = kv.value if kv else None
        before = self.roots
        if any(map(is_root_key, changes[EVERYWHERE])):
            self.roots = self._anchor.following(self.root_records)
        of_all = self._everywhere.take(revision, changes.pop(EVERYWHERE, {}))
        parent = next((self._traced[key] for key in changed if key in self._traced), "")
        for network in changes.keys() | (self._views.keys() if of_all else set()):
            self._change_map(network, revision, {**of_all, **changes[network]}, parent)
        if self.roots != before:
            self._judge_again(revision)
        self.revision = revision
        for place in followed:
            for listener in self._of_kind[place.kind]:
                listener(place.network, place.item)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _set(self, key: str, kv: KeyValue | None) -> None:
        if kv is None:
            self._kvs.pop(key, None)
        else:
            self._kvs[key] = kv

    def _hold(self, place: keys.Place, kv: KeyValue | None) -> None:
        held = self._held[place.kind, place.network]
        if kv is None:
            held.pop(place.item, None)
        else:
            held[place.item] = kv

    def _change_map(self, network: str, revision: int, said: Changes, traceparent: str = "") -> None:
        view = self._views.get(network)
        if view is None:
            said = {**self._everywhere.map.items, **said}
            view = self._views[network] = NetworkView(network, revision, said, self._judge)
            changes: Changes = view.map.items
        else:
            changes = view.take(revision, said, traceparent)
        if changes:
            for listener in self._listeners:
                listener(network, changes)

    def _verified(self, key: str, signed: bytes) -> Record:
        if self._fresh.take(key, signed, self.roots):
            return read(key, signed)
        return verify(key, signed, self.roots)

    # The mesh root.

    @property
    def root_records(self) -> Iterator[tuple[str, bytes]]:
        """Peer map key and encoded Signed of all that says how the mesh root came to be what it is."""
        for kind in ("succession", "roots"):
            yield from ((root_key(item), kv.value) for item, kv in self.held(kind).items())

    def _judge_again(self, revision: int) -> None:
        """Use what the roots trusted now have signed, and nothing else."""
        for view in (self._everywhere, *self._views.values()):
            view.distrust()
        self._everywhere.take(revision, self._refused(self._everywhere))
        for view in self._views.values():
            self._change_map(view.name, revision, self._refused(view))

    def _refused(self, view: NetworkView) -> Changes:
        """Return what the store says under the keys of a network with which there was something wrong."""
        places = ((keys.parse(key), kv) for key, kv in self._kvs.items())
        said = {
            place.map_key: kv.value
            for place, kv in places
            if place and place.map_key and place.network in (view.name, EVERYWHERE)
        }
        return {key: said[key] for key in view.refused if key in said}
