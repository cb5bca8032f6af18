"""The store of record: one contract (base.py), one implementation per folder, one test suite for all.

base.py      the contract: etcd's semantics
sqlite/      the embedded store: one controller, one file
etcd/        the shared store: many controllers, one etcd
feed.py      a watch as its reader sees it
history.py   keeps the history from growing for ever

open_store("sqlite:/var/lib/overmesh/store.db")
open_store("etcd://a:2379,b:2379,c:2379/mesh?ca=ca.pem&cert=controller.pem&key=controller.key")
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from overmesh.controller.store.base import Store
from overmesh.controller.store.etcd import EtcdStore
from overmesh.controller.store.sqlite import SqliteStore
from overmesh.errors import ConfigError, StateError

_OPENERS: MappingProxyType[str, Callable[[str], Store]] = MappingProxyType(
    {"sqlite": SqliteStore.open, "etcd": EtcdStore.open}
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):")


def open_store(target: str) -> Store:
    """Open the store that a setting names; call it from the event loop that will use the store.

    Args:
        target: `scheme:rest`, or the plain path of a SQLite file.

    Raises:
        ConfigError: no such scheme, or nothing after it.
        StoreError: the store is there but can't be opened; see its subclasses.

    """
    scheme, rest = _parts(target)
    fix = f"name a path, or one of: {', '.join(f'{known}:…' for known in _OPENERS)}"
    if scheme not in _OPENERS:
        raise ConfigError(f"the store {target!r} has an unknown scheme: {scheme}", fix)
    if not rest:
        raise ConfigError(f"the store {target!r} names no place", fix)
    return _OPENERS[scheme](rest)


def open_existing(target: str) -> Store:
    """Do the same for reading: a SQLite file that is not there is not made.

    Raises:
        StateError: there is no such file.

    """
    scheme, rest = _parts(target)
    if scheme == "sqlite" and rest and not Path(rest).exists():
        raise StateError(f"there is no store {rest}", "name the store of a controller that has run")
    return open_store(target)


def _parts(target: str) -> tuple[str, str]:
    """Return scheme and rest."""
    found = _SCHEME.match(target)
    return (found[1], target[found.end() :]) if found else ("sqlite", target)
