"""Signs everything in the store again, once another root signs: records, and what carries a MAC.

Any number of controllers may do this at once, and any of them may die on the way: what is left is found by
looking, and a batch is written only if nothing in it has changed meanwhile.
"""

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

from overmesh.controller.audit import Deed
from overmesh.controller.membership import Signer
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put, Store, unchanged
from overmesh.controller.trust import MeshRoot
from overmesh.errors import LeaseNotFoundError, NotFoundError

# Each is compared and written: etcd takes 128 of both in a transaction.
_BATCH = 50
# Signed by whoever puts them there: each controller for itself, and what says which root follows which.
_NOT_HERE = frozenset({"controllers", "roots"})
# Seconds.
_LEASE_PAUSE = 1.0


class Resigning:
    """What the root that signs has not signed yet.

    Args:
        store: where the audit is, which the mirror does not hold.
        mirror: of everything else.
        root: of the mesh.
        signer: gives each record its next serial.

    """

    def __init__(self, store: Store, mirror: Mirror, root: MeshRoot, signer: Signer) -> None:
        self._store = store
        self._mirror = mirror
        self._root = root
        self._signer = signer
        # Key -> the revision at which there was nothing to do: it need not be looked at again.
        self._done: dict[str, int] = {}
        root.on_change(self._done.clear)

    @property
    def left(self) -> int:
        """How many values in the mirror are not signed by the root that signs."""
        return sum(1 for _ in self._left())

    async def finish(self) -> None:
        """Sign all that is left.

        Raises:
            StoreUnavailableError: some may be signed; the rest is left.

        """
        while batch := [kv.key for kv in islice(self._left(), _BATCH)]:
            try:
                await self._mirror.change(partial(self._plan, batch))
            except LeaseNotFoundError:  # what was there under it is about to go
                await asyncio.sleep(_LEASE_PAUSE)
            await asyncio.sleep(0)
        await self._mark_audit()

    def _left(self) -> Iterator[KeyValue]:
        for kv in self._mirror.everything():
            if self._done.get(kv.key) != kv.mod_revision:
                if self._is_left(kv):
                    yield kv
                else:
                    self._done[kv.key] = kv.mod_revision

    def _plan(self, batch: Iterable[str]) -> Change | None:
        found = [kv for kv in map(self._mirror.key, batch) if kv and self._is_left(kv)]
        deed = Deed("records signed again", details={"records": str(len(found))})
        return Change(list(map(unchanged, found)), list(map(self._again, found)), deed) if found else None

    def _is_left(self, kv: KeyValue) -> bool:
        place = keys.parse(kv.key)
        if place is None or place.kind in _NOT_HERE:
            return False
        if not place.map_key:
            return _is_marked_by_another(self._root, kv)
        try:
            view = self._mirror.view(place.network)
        except NotFoundError:
            return False
        # A record that was refused is not in use: it is not signed either.
        in_use = place.map_key in view.records and view.map.items[place.map_key] == kv.value
        return in_use and self._mirror.roots.signer(place.map_key, kv.value) != self._root.fingerprint

    def _again(self, kv: KeyValue) -> Put:
        place = keys.parse(kv.key)
        if place and place.map_key:
            record = self._mirror.view(place.network).records[place.map_key]
            return Put(kv.key, self._signer.sign(record), kv.lease)
        return _marked(self._root, kv)

    async def _mark_audit(self) -> None:
        found = await self._store.range(keys.AUDIT)
        left = [kv for kv in found.kvs if _is_marked_by_another(self._root, kv)]
        for start in range(0, len(left), _BATCH):
            batch = left[start : start + _BATCH]
            await self._store.txn(list(map(unchanged, batch)), [_marked(self._root, kv) for kv in batch])


def _is_marked_by_another(root: MeshRoot, kv: KeyValue) -> bool:
    """Tell whether a value carries a MAC (trust/authentic.py) of a root that is held but does not sign."""
    value, _, mac = kv.value.rpartition(b"\n")
    return root.is_mac(kv.key, value, mac) and mac != root.mac(kv.key, value)


def _marked(root: MeshRoot, kv: KeyValue) -> Put:
    value = kv.value.rpartition(b"\n")[0]
    return Put(kv.key, value + b"\n" + root.mac(kv.key, value), kv.lease)
