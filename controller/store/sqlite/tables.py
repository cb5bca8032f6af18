"""The embedded store's tables, and every SQL statement about them.

`kv` is what is true now, `history` every change since the last compaction (and, of older ones, the
last of each key that was alive then). Both hold whole values: reading either needs no other.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

from overmesh.controller.store.base import Event, KeyValue, WatchBatch

# Revision 1 is the empty store, as in etcd, because 0 stands for "now" in requests.
# A deletion is a row of history with version 0.
SCHEMA = """
CREATE TABLE meta (revision INTEGER NOT NULL, compacted INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 0);

CREATE TABLE kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL,
    create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kv_by_lease ON kv (lease) WHERE lease != 0;

CREATE TABLE history (
    mod_revision INTEGER NOT NULL, position INTEGER NOT NULL,
    key TEXT NOT NULL, value BLOB,
    create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
    PRIMARY KEY (mod_revision, position)
) WITHOUT ROWID;
CREATE INDEX history_by_key ON history (key, mod_revision);

CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL);
"""

_KV = "key, value, create_revision, mod_revision, version, lease"


class Meta(NamedTuple):
    """The latest revision, and the oldest one that is kept."""

    revision: int
    compacted: int


class Tables:
    """The tables through one connection; no method begins or ends a transaction but `transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute

    @contextmanager
    def transaction(self, kind: str) -> Iterator[None]:
        """Commit at the end, undo on any error. kind: DEFERRED to read, IMMEDIATE to write."""
        self._execute(f"BEGIN {kind}")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite has ended it by itself after some errors
                self._execute("ROLLBACK")
            raise

    def meta(self) -> Meta:
        """Return the revisions."""
        return Meta(*self._execute("SELECT revision, compacted FROM meta").fetchone())

    def store_meta(self, meta: Meta) -> None:
        """Write the revisions."""
        self._execute("UPDATE meta SET revision = ?, compacted = ?", meta)

    def find(self, key: str) -> KeyValue | None:
        """Return a key as it is now."""
        row = self._execute(f"SELECT {_KV} FROM kv WHERE key = ?", (key,)).fetchone()  # noqa: S608 - a constant
        return KeyValue(*row) if row else None

    def current(self, prefix: str, after: str, limit: int) -> list[KeyValue]:
        """Return keys as they are now, in order; a negative limit stands for none."""
        select = f"SELECT {_KV} FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"  # noqa: S608
        return [KeyValue(*row) for row in self._execute(select, (*_bounds(prefix, after), limit))]

    def past(self, prefix: str, after: str, limit: int, revision: int) -> list[KeyValue]:
        """Return keys as they were at a revision that is kept, in order."""
        # With max(), SQLite takes the other columns from the row that has it.
        select = """
            SELECT key, value, create_revision, max(mod_revision), version, lease FROM history
            WHERE key >= ? AND key < ? AND mod_revision <= ?
            GROUP BY key HAVING version > 0 ORDER BY key LIMIT ?"""
        return [KeyValue(*row) for row in self._execute(select, (*_bounds(prefix, after), revision, limit))]

    def changes(self, prefix: str, start: int) -> list[WatchBatch]:
        """Return what changed under prefix from revision `start` on."""
        select = f"""
            SELECT {_KV} FROM history WHERE mod_revision >= ? AND key >= ? AND key < ?
            ORDER BY mod_revision, position"""  # noqa: S608
        rows = self._execute(select, (start, *_bounds(prefix)))
        changed = (KeyValue(*row) for row in rows)
        return [
            WatchBatch(revision, tuple(Event(kv.key, kv if kv.version else None) for kv in kvs))
            for revision, kvs in groupby(changed, key=lambda kv: kv.mod_revision)
        ]

    def record(self, revision: int, events: Iterable[Event]) -> None:
        """Write the changes of one revision."""
        insert = f"INSERT INTO history (position, {_KV}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
        for position, event in enumerate(events):
            row = _row(event.kv) if event.kv else (event.key, None, 0, revision, 0, 0)
            self._execute(insert, (position, *row))
            if event.kv:
                self._execute(f"INSERT OR REPLACE INTO kv ({_KV}) VALUES (?, ?, ?, ?, ?, ?)", row)  # noqa: S608
            else:
                self._execute("DELETE FROM kv WHERE key = ?", (event.key,))

    def compact(self, revision: int) -> None:
        """Forget what `past` and `changes` do not need from this revision on."""
        self._execute(
            """
            DELETE FROM history WHERE mod_revision < :revision AND (version = 0 OR EXISTS (
                SELECT 1 FROM history AS newer
                WHERE newer.key = history.key
                AND newer.mod_revision > history.mod_revision AND newer.mod_revision <= :revision))""",
            {"revision": revision},
        )

    def leases(self) -> dict[int, float]:
        """Return every lease's time to live."""
        return dict(self._execute("SELECT id, ttl FROM leases"))

    def add_lease(self, ttl: float) -> int:
        """Return the id of a new lease; never one that was used before."""
        lease = self._execute("INSERT INTO leases (ttl) VALUES (?)", (ttl,)).lastrowid
        assert lease is not None
        return lease

    def remove_lease(self, lease: int) -> None:
        """Forget a lease, not its keys."""
        self._execute("DELETE FROM leases WHERE id = ?", (lease,))

    def keys_of(self, lease: int) -> list[str]:
        """Return the keys that live as long as this lease, in order."""
        select = "SELECT key FROM kv WHERE lease = ? AND lease != 0 ORDER BY key"
        return [key for (key,) in self._execute(select, (lease,))]


def _bounds(prefix: str, after: str = "") -> tuple[str, str]:
    """Return the first possible key and the first impossible one.

    SQLite compares text by its UTF-8 bytes. Keys are ASCII and not empty, so the smallest key after
    `after` adds a NUL to it, and U+0080 sorts behind everything that can follow a prefix.
    """
    return max(prefix, after + "\0"), prefix + "\x80"


def _row(kv: KeyValue) -> tuple[str, bytes, int, int, int, int]:
    return kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease
