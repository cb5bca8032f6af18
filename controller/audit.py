"""Who changed what, when, from where: one entry for each change of membership, in the same transaction.

    plan ──► Change ──audited──► Change + entry ──one transaction──► store

Entries are at /overmesh/audit/<id>, beside what the mirror follows: nobody needs them in memory, and no
agent gets them. An id begins with the time. meshctl brings its own, the same when it asks again: an
entry that is there already says that the request was carried out, and with which result.

A MAC under the mesh root's key covers each entry and its place, so one that somebody else wrote shows
as such. That entries were deleted does not show.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from overmesh import rpc
from overmesh.controller.serving.caller import Caller, caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, Delete, KeyValue, Op, Put, Store, absent
from overmesh.controller.trust import MeshRoot, authentic
from overmesh.errors import StoreCorruptError

KEPT_SECONDS = 90 * 86400
KEPT_ENTRIES = 20_000
_DELETES = 100
# Everything else a controller writes is no change of who or what is in the mesh.
_AUDITED = frozenset({"networks", "nodes", "tokens", "pending", "revoked", "roots"})
# In the year 6429: as late as a date can be shown.
_LATEST_MS = 1 << 47
_LONGEST = 1000
_ID = re.compile(r"([0-9a-f]{12})[0-9a-f.]+")


@dataclass(frozen=True, slots=True)
class Deed:
    """What a change is, for people: `what` in words, and what it is done to.

    who: when the one who asks is known better than by its connection.
    """

    what: str
    network: str = ""
    subject: str = ""
    name: str = ""
    who: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


# Of a deed, as an entry has it; who has a place of its own there.
_TOLD = tuple(each.name for each in fields(Deed) if each.name != "who")


@dataclass(frozen=True, slots=True)
class Entry:
    """A change that was made. at_ms: unix milliseconds; revision: of the change.

    genuine: False when no controller of this mesh has written it: then nothing of it need be true.
    """

    id: str
    at_ms: int
    deed: Deed
    who: str
    origin: str
    controller: str
    revision: int
    genuine: bool = True

    @classmethod
    def read(cls, kv: KeyValue, root: MeshRoot) -> Self:
        """Read what is in the store."""
        try:
            fields, genuine = authentic.decode(root, kv, "an audit entry"), True
        except StoreCorruptError:
            fields, genuine = _claims(kv.value), False
        return cls(
            id=_text(kv.key.removeprefix(keys.AUDIT)),
            at_ms=_milliseconds(fields.get("at_ms"), kv.key),
            deed=_deed(fields.get("deed")),
            who=_text(fields.get("who")),
            origin=_text(fields.get("origin")),
            controller=_text(fields.get("controller")),
            # The later ones are those of a rotation of the root, which marks entries anew.
            revision=kv.create_revision,
            genuine=genuine,
        )

    def concerns(self, node: str) -> bool:
        """Tell whether it is about, or by, the node of this name or id; an empty one is any."""
        return not node or node in (self.deed.subject, self.deed.name, self.who.removeprefix("node "))


def _claims(value: bytes) -> dict[str, Any]:
    """Return what a forged entry says, as far as it can be read."""
    try:
        fields = json.loads(value.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _milliseconds(value: object, key: str) -> int:
    found = _ID.fullmatch(key.removeprefix(keys.AUDIT))
    by_key = int(found[1], 16) if found else 0
    return min(value if type(value) is int and value >= 0 else by_key, _LATEST_MS)


def _deed(value: object) -> Deed:
    fields = value if isinstance(value, dict) else {}
    details = fields.get("details")
    texts = {name: _text(fields.get(name)) for name in ("what", "network", "subject", "name")}
    pairs = details.items() if isinstance(details, dict) else ()
    return Deed(**texts, details={_text(key): _text(text) for key, text in pairs})


def _text(value: object) -> str:
    """Return what can be shown and sent: a forger may have put anything there."""
    text = str(value or "")[:_LONGEST].encode(errors="replace").decode()
    return "".join(character if character.isprintable() else "?" for character in text)


class Audit:
    """Adds entries to changes, and reads them back.

    Args:
        store: where they are.
        root: of the mesh: what marks them as ours.
        clock: unix seconds.
        controller: what this one is called in them.

    """

    def __init__(self, store: Store, root: MeshRoot, clock: Callable[[], float], controller: str) -> None:
        self._store = store
        self._root = root
        self._clock = clock
        self._controller = controller

    # Writing.

    def next_key(self) -> str:
        """Return where the next change that this task makes is to be entered.

        A request that is repeated makes its changes in the same order, and gets the same keys.
        """
        asking = caller()
        if not asking.request:
            return keys.audit(rpc.request_id(self._clock()))
        number = next(asking.changes)
        return keys.audit(f"{asking.request}.{number}" if number else asking.request)

    def entry(self, key: str, deed: Deed | None, ops: Sequence[Op]) -> tuple[Sequence[Compare], Sequence[Op]]:
        """Return what a transaction needs besides, to be entered at a key: comparisons and ops.

        Nothing when it is no change of membership. One that is and gives no account of itself is entered
        by what it writes.
        """
        deed = deed or _undeclared(ops)
        if deed is None:
            return (), ()
        value = authentic.encode(self._root, key, self._fields(deed, caller()))
        return [absent(key)], [Put(key, value)]

    def _fields(self, deed: Deed, asking: Caller) -> dict[str, Any]:
        return {
            "at_ms": int(self._clock() * 1000),
            "deed": {name: value for name in _TOLD if (value := getattr(deed, name))},
            "who": deed.who or asking.who,
            "origin": asking.origin,
            "controller": self._controller,
        }

    # Reading.

    async def done(self, key: str = "") -> Entry | None:
        """Return what the request that this task serves has changed before, when it is a repetition.

        Args:
            key: of the entry; empty: of the request's first change.

        """
        request = caller().request
        kv = await self._store.get(key or keys.audit(request)) if request else None
        entry = Entry.read(kv, self._root) if kv else None
        return entry if entry and entry.genuine else None

    async def entries(self, since: float = 0, *, follow: bool = False) -> AsyncIterator[Entry]:
        """Yield entries from a time on (unix seconds), as the changes came; with `follow`, new ones for ever.

        Raises:
            StoreUnavailableError

        """
        found = await self._store.range(keys.AUDIT, after=keys.audit(_time_part(since)))
        # Clocks of controllers differ, and with them the order of ids.
        for kv in sorted(found.kvs, key=lambda kv: kv.create_revision):
            yield Entry.read(kv, self._root)
        if follow:
            async for batch in self._store.watch(keys.AUDIT, found.revision + 1):
                for entry in (Entry.read(event.kv, self._root) for event in batch.events if event.kv):
                    if entry.revision == batch.revision or not entry.genuine:
                        yield entry

    # Trimming.

    async def trim(self) -> None:
        """Forget what is too old or too much. All controllers may do this at once: they forget the same."""
        found = await self._store.range(keys.AUDIT)
        horizon = keys.audit(_time_part(self._clock() - KEPT_SECONDS))
        excess = max(0, len(found.kvs) - KEPT_ENTRIES)
        old = [Delete(kv.key) for place, kv in enumerate(found.kvs) if place < excess or kv.key < horizon]
        for start in range(0, len(old), _DELETES):
            await self._store.txn([], old[start : start + _DELETES])


def _undeclared(ops: Sequence[Op]) -> Deed | None:
    """Return what can be said of a change of membership that says nothing of itself."""
    for op, place in _audited_places(ops):
        done = "deleted" if isinstance(op, Delete) else "written"
        return Deed(f"{place.kind} {done}", place.network, place.item or place.network)
    return None


def _audited_places(ops: Sequence[Op]) -> Iterator[tuple[Op, keys.Place]]:
    for op in ops:
        place = keys.parse(op.key)
        if place and place.kind in _AUDITED:
            yield op, place


def _time_part(seconds: float) -> str:
    """Return how the ids of that moment begin (see rpc.request_id)."""
    return f"{max(0, int(seconds * 1000)):012x}"
