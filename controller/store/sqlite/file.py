"""The embedded store's file: ours alone, made by us and whole; else an error that says what to do.

PATH              the database, mode 0600
PATH-wal, -shm    SQLite's log of what is not yet in PATH, and its index; PATH is not whole without
PATH.lock         locked (flock) while a controller has the store open; holds its pid
PATH.new          a database in the making, renamed to PATH when whole
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from overmesh.controller.store.sqlite.tables import SCHEMA
from overmesh.errors import StoreBusyError, StoreCorruptError, StoreError, StoreUnavailableError
from overmesh.files import sync_directory

APPLICATION_ID = 0x4F4D5354  # "OMST"
SCHEMA_VERSION = 1

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID_AT = slice(68, 72)  # https://www.sqlite.org/fileformat.html#the_database_header
_RESTORE = "restore it from a backup, and move its -wal file away; it was left as it is"


class StoreFile:
    """A store's file, locked for this process until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock and check the file; make it, and its directory, when it is not there.

        Raises:
            StoreBusyError: another controller has it; names its pid.
            StoreCorruptError: not a store, damaged, or of another version; nothing was written.
            StoreUnavailableError: the file system refuses.

        """
        with translated(path):
            if path.is_dir():
                raise StoreUnavailableError(f"{path} is a directory", f"name a file, such as {path}/store.db")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = cls(path, _locked(path))
            try:
                if not path.exists() or not path.stat().st_size:
                    _create(path)
                _check(path)
            except BaseException:
                file.close()
                raise
            return file

    def connect(self) -> sqlite3.Connection:
        """Return a connection for one thread at a time, without implicit transactions."""
        with translated(self.path):
            connection = _connect(self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL may lose the last commits with the power, and would then use their revisions again.
            connection.execute("PRAGMA synchronous = FULL")
            return connection

    def close(self) -> None:
        """Let another controller have the file. Close the connections first."""
        os.close(self._lock)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into store errors."""
    try:
        yield
    except sqlite3.Error as error:
        raise explained(error, path) from error
    except OSError as error:
        fix = "make its directory writable for the controller, or name another path"
        raise StoreUnavailableError(f"can't use {path}: {error.strerror}", fix) from error


def explained(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the store error for one of SQLite's."""
    match _primary_code(error):
        case sqlite3.SQLITE_FULL:
            return StoreUnavailableError(
                f"no space left for {path}", "free some; what was stored before is safe"
            )
        case sqlite3.SQLITE_BUSY:
            return StoreUnavailableError(f"{path} is locked by another program", "end that program")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorruptError(f"{path} is damaged: {error}", _RESTORE)
        case _:
            return StoreUnavailableError(
                f"can't use {path}: {error}", "check the disk: its free space, and the kernel log"
            )


def is_passing(error: sqlite3.Error) -> bool:
    """Tell whether the same request may succeed later, after a rollback."""
    return _primary_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _locked(path: Path) -> int:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    except OSError as error:
        pid = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise
        fix = "stop it, or give this controller its own store"
        raise StoreBusyError(f"another controller (pid {pid}) has {path} open", fix) from error
    return lock


def _create(path: Path) -> None:
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        # SQLite would apply it to the new file.
        cause = f"{log} is there, but not the file it belongs to"
        raise StoreCorruptError(cause, f"restore {path}, or move {log} away")
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(_connect(new)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        connection.executescript(f"BEGIN; {SCHEMA} {marks} COMMIT;")
    new.rename(path)
    sync_directory(path.parent)


def _check(path: Path) -> None:
    # Not through SQLite, which would apply a foreign file's log to it.
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(_MAGIC) or int.from_bytes(header[_APPLICATION_ID_AT]) != APPLICATION_ID:
        raise StoreCorruptError(f"{path} is not an Overmesh store", "name another path; it was left as it is")
    with closing(_connect(path, "ro")) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            cause = f"{path} has schema version {version}, this controller knows {SCHEMA_VERSION}"
            raise StoreCorruptError(cause, "run the version of Overmesh that wrote it")
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise StoreCorruptError(f"{path} is damaged: {' '.join(finding.split())}", _RESTORE)


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
