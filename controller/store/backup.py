"""A store's content as a file, and back; from one store into another, of whatever kind.

    store ──export──► all keys at one revision ──import──► an empty store

What lives under a lease (presence) is left out: the controllers say it again. Values keep; revisions
are the new store's own, and agents that held later ones get a snapshot.

The new store is filled in several transactions, under a key that says so. While it is there no
controller starts on that store, and the next import begins by clearing away what the last one left.
"""

import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from overmesh.controller.store import keys
from overmesh.controller.store.base import (
    MAX_OPS,
    Compare,
    Delete,
    KeyValue,
    Op,
    Put,
    Store,
    absent,
    unchanged,
)
from overmesh.errors import ExistsError, StateError, StoreCorruptError
from overmesh.files import as_bytes, as_text

FORMAT = "overmesh store 1"

T = TypeVar("T")

Content = Mapping[str, bytes]


async def read(store: Store) -> Content:
    """Return what a store keeps, as of one moment.

    Raises:
        StateError: there is nothing, or an import that has not finished.
        StoreUnavailableError: the store can't be read.

    """
    found = await store.range(keys.OURS)
    content = {kv.key: kv.value for kv in found.kvs if not kv.lease}
    if keys.IMPORTING in content:
        raise StateError("an import into this store has not finished", "run it again")
    if keys.ROOT_PIN not in content:
        raise StateError("there is no mesh in this store", "name the store of a controller that has run")
    return content


async def fill(store: Store, content: Content) -> None:
    """Write content into an empty store: all of it, or no controller will use it.

    Raises:
        ExistsError: the store is not empty; it is left as it is.
        StateError: somebody else is writing to it.
        StoreUnavailableError: it broke off; the next attempt begins anew.

    """
    await _clear(store)
    if not (
        await store.txn([absent(keys.IMPORTING), absent(keys.ROOT_PIN)], [Put(keys.IMPORTING, b"")])
    ).succeeded:
        raise StateError("somebody else has just written to the store", "look what it holds")
    mark = await store.get(keys.IMPORTING)
    for some in _parts([Put(key, value) for key, value in content.items()]):
        await _continue(store, mark, some)
    await _continue(store, mark, [Delete(keys.IMPORTING)])


async def _clear(store: Store) -> None:
    """Remove what an import that broke off has left; refuse anything else."""
    found = (await store.range(keys.OURS)).kvs
    if not found:
        return
    mark = next((kv for kv in found if kv.key == keys.IMPORTING), None)
    if mark is None:
        raise ExistsError(
            f"the store is not empty: it holds {found[0].key}", "name an empty one; this was left as it is"
        )
    rest = [Delete(kv.key) for kv in found if kv is not mark]
    for some in _parts(rest):
        await _continue(store, mark, some)
    await _continue(store, mark, [Delete(keys.IMPORTING)])


async def _continue(store: Store, mark: KeyValue | None, ops: Sequence[Op]) -> None:
    compares: list[Compare] = [unchanged(mark)] if mark else []
    if not mark or not (await store.txn(compares, ops)).succeeded:
        raise StateError("somebody else imports into this store", "let one finish")


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, MAX_OPS)):
        yield some


def encode(content: Content) -> bytes:
    """Return content as a file holds it. It is secret: it has the hashes of tokens."""
    values = {key: as_text(value) for key, value in content.items()}
    return json.dumps({"format": FORMAT, "keys": values}, indent=1).encode() + b"\n"


def decode(data: bytes, name: str) -> Content:
    """Return the content of a file.

    Args:
        data: what is in it.
        name: what to call it.

    Raises:
        StoreCorruptError: it is not what `encode` has made, or not all of it.

    """
    try:
        document = json.loads(data)
        known = document["format"] == FORMAT
        content = {key: as_bytes(value) for key, value in document["keys"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        raise _not_ours(name, "it is not what `meshctl store export` writes, or not all of it") from None
    if not known:
        raise _not_ours(name, f"it is of format {document['format']!r}")
    for key in content:
        if not key.startswith(keys.OURS) or not key.isascii() or key == keys.IMPORTING:
            raise _not_ours(name, f"it has a key {key!r}")
    if keys.ROOT_PIN not in content:
        raise _not_ours(name, "it does not say which mesh it is of")
    return content


def _not_ours(name: str, why: str) -> StoreCorruptError:
    return StoreCorruptError(f"{name} can't be imported: {why}", "name a file that an export has written")
