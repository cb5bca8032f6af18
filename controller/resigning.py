"""Signs everything in the store again, once another root signs: records, and what carries a MAC.

Any number of controllers may do this at once, and any of them may die on the way: what is left is found by
looking, and a batch is written only if nothing in it has changed meanwhile.
"""

import asyncio
from collections.abc import Iterator

from overmesh.controller import keys
from overmesh.controller.audit import Deed
from overmesh.controller.membership import Signer
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store.base import KeyValue, Put, Store, unchanged
from overmesh.controller.trust import MeshRoot
from overmesh.errors import RecordError
from overmesh.proto.signed import verify

# Each is compared and written: etcd takes 128 of both in a transaction.
_BATCH = 50
_RECORDS = ("networks", "nodes", "endpoints", "revoked")
_MARKED = ("tokens", "credentials", "pending")


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
        # Key -> the revision at which the root that signs had signed it: it need not be looked at again.
        self._signed: dict[str, int] = {}
        root.on_change(self._signed.clear)

    @property
    def left(self) -> int:
        """How many values in the mirror are not signed by the root that signs."""
        return sum(1 for _ in self._left())

    async def finish(self) -> None:
        """Sign all that is left.

        Raises:
            StoreUnavailableError: some may be signed; the rest is left.

        """
        while batch := self._batch():
            await self._mirror.change(lambda: self._plan([kv.key for kv in batch]))
            await asyncio.sleep(0)
        await self._mark_audit()

    def _batch(self) -> list[KeyValue]:
        left = self._left()
        return [kv for _, kv in zip(range(_BATCH), left, strict=False)]

    def _left(self) -> Iterator[KeyValue]:
        for kind, network, kv in self._candidates():
            if self._signed.get(kv.key) == kv.mod_revision:
                continue
            if self._is_done(kind, kv):
                self._signed[kv.key] = kv.mod_revision
            elif self._again(kind, network, kv):
                yield kv

    def _candidates(self) -> Iterator[tuple[str, str, KeyValue]]:
        for view in self._mirror.networks:
            for kind in (*_RECORDS, "credentials", "pending"):
                yield from ((kind, view.name, kv) for kv in self._mirror.held(kind, view.name).values())
        yield from (("tokens", "", kv) for kv in self._mirror.held("tokens").values())

    def _is_done(self, kind: str, kv: KeyValue) -> bool:
        if kind in _MARKED:
            value, _, mac = kv.value.partition(b"\n")
            return mac == self._root.mac(kv.key, value)
        try:
            verify(_map_key(kv), kv.value, self._root.public_key)
        except RecordError:
            return False
        return True

    def _again(self, kind: str, network: str, kv: KeyValue) -> Put | None:
        """Return what writes a value anew; None when it is not one of ours: it stays as it is."""
        if kind in _MARKED:
            return _marked(self._root, kv)
        view = self._mirror.view(network)
        # What is in use has to be what the store holds: a record that was refused is not signed.
        if view.map.items.get(_map_key(kv)) != kv.value or _map_key(kv) not in view.records:
            return None
        return Put(kv.key, self._signer.sign(view.records[_map_key(kv)]), kv.lease)

    def _plan(self, wanted: list[str]) -> Change | None:
        compares, ops = [], []
        for key in wanted:
            kv, place = self._mirror.key(key), keys.parse(key)
            if kv is None or place is None or self._is_done(place.kind, kv):
                continue
            if put := self._again(place.kind, place.network, kv):
                compares.append(unchanged(kv))
                ops.append(put)
        deed = Deed("records signed again", details={"records": str(len(ops))})
        return Change(compares, ops, deed) if ops else None

    async def _mark_audit(self) -> None:
        found = await self._store.range(keys.AUDIT)
        puts = [(kv, _marked(self._root, kv)) for kv in found.kvs if not self._is_done("tokens", kv)]
        for start in range(0, len(puts), _BATCH):
            batch = [(kv, put) for kv, put in puts[start : start + _BATCH] if put]
            await self._store.txn([unchanged(kv) for kv, _ in batch], [put for _, put in batch])


def _marked(root: MeshRoot, kv: KeyValue) -> Put | None:
    value, _, mac = kv.value.partition(b"\n")
    if not root.is_mac(kv.key, value, mac):
        return None
    return Put(kv.key, value + b"\n" + root.mac(kv.key, value), kv.lease)


def _map_key(kv: KeyValue) -> str:
    place = keys.parse(kv.key)
    return place.map_key if place else ""
