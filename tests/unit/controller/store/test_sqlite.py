"""What only the embedded store promises: about its file, its lock, its threads, and how it fails."""

import asyncio
import gc
import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from overmesh.controller.store.base import Delete, Put, WatchBatch
from overmesh.controller.store.sqlite import SqliteStore
from overmesh.controller.store.sqlite.file import StoreFile
from overmesh.controller.store.sqlite.ledger import Ledger
from overmesh.errors import (
    LeaseNotFoundError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
    UnconfirmedError,
)

ROOT = Path(__file__).parents[4]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


async def filled(path: Path, count: int = 100) -> SqliteStore:
    store = SqliteStore.open(path)
    await asyncio.gather(*(store.txn((), [Put(f"/{number:04}", bytes(500))]) for number in range(count)))
    return store


async def history(path: Path) -> list[WatchBatch]:
    store = SqliteStore.open(path)
    revision = (await store.range("")).revision
    watch = store.watch("", 1)
    batches = [await anext(watch) for _ in range(revision - 1)]
    await store.close()
    return batches


def contents(directory: Path) -> dict[str, bytes]:
    """Return all that matters: not who has the lock, not SQLite's index, which it makes anew."""
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    return {name: data for name, data in files.items() if data and not name.endswith((".lock", "-shm"))}


async def crashed(path: Path, target: Path) -> None:
    """Leave what a controller leaves that had no time to close its store."""
    store = await filled(path)
    target.parent.mkdir()
    for suffix in ("", "-wal"):
        # By another process: closing a file drops all locks that this process has on it.
        subprocess.run(["cp", f"{path}{suffix}", f"{target}{suffix}"], check=True)
    await store.close()
    assert Path(f"{target}-wal").stat().st_size


class TestFiles:
    async def test_they_are_for_the_owner_only(self, path: Path) -> None:
        before = os.umask(0)
        try:
            store = await filled(path)
        finally:
            os.umask(before)
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
        assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], "0o600")
        assert oct(path.parent.stat().st_mode & 0o777) == "0o700"
        await store.close()

    async def test_after_closing_the_file_is_whole_by_itself(self, path: Path) -> None:
        await (await filled(path)).close()
        assert {file.name for file in path.parent.iterdir()} == {"store.db", "store.db.lock"}
        path.rename(path.with_name("moved.db"))
        assert len(await history(path.with_name("moved.db"))) == 100

    async def test_an_empty_file_is_as_good_as_none(self, path: Path) -> None:
        path.parent.mkdir()
        path.touch()
        await (await filled(path)).close()
        assert len(await history(path)) == 100

    async def test_a_creation_that_was_cut_short(self, path: Path) -> None:
        path.parent.mkdir()
        Path(f"{path}.new").write_bytes(b"half a database")
        await (await filled(path)).close()
        assert len(await history(path)) == 100

    async def test_odd_names(self, tmp_path: Path) -> None:
        odd = tmp_path / "a b%20?mode=ro#ü" / "x.db"
        await (await filled(odd)).close()
        assert odd.stat().st_size

    async def test_compacting_keeps_no_more_than_it_must(self, path: Path) -> None:
        store = await filled(path, 3)
        await store.txn((), [Put("/0000", b"again"), Delete("/0001")])
        point = (await store.txn((), [Put("/0002", b"again")])).revision
        await store.txn((), [Put("/0002", b"once more")])
        await store.compact(point)
        await store.close()
        with closing(sqlite3.connect(path)) as connection:
            kept = connection.execute("SELECT key, mod_revision FROM history").fetchall()
        assert kept == [("/0000", point - 1), ("/0002", point), ("/0002", point + 1)]

    async def test_a_lease_that_has_ended_stays_so(self, path: Path) -> None:
        store = SqliteStore.open(path)
        lease = await store.grant(1000)
        await store.revoke(lease)
        await store.close()
        store = SqliteStore.open(path)
        with pytest.raises(LeaseNotFoundError):
            await store.keepalive(lease)
        await store.close()

    async def test_compacting_makes_room(self, path: Path) -> None:
        store = await filled(path)

        async def churn() -> int:
            for _ in range(10):
                revision = (
                    await asyncio.gather(*(store.txn((), [Put("/a", bytes(500))]) for _ in range(100)))
                )[-1]
            await store.compact(revision.revision)
            await store.close()
            return path.stat().st_size

        size = await churn()
        for _ in range(3):
            store = SqliteStore.open(path)
            assert await churn() == size


class TestLock:
    async def test_a_second_controller_is_refused(self, path: Path) -> None:
        store = SqliteStore.open(path)
        with pytest.raises(StoreBusyError, match=re.escape(f"(pid {os.getpid()}) has {path} open")) as caught:
            SqliteStore.open(path)
        assert caught.value.fix
        await store.txn((), [Put("/a", b"")])
        await store.close()
        await SqliteStore.open(path).close()

    async def test_also_one_in_another_process(self, path: Path) -> None:
        with acking_writer(path) as child:
            read_line(child)
            with pytest.raises(StoreBusyError, match=f"pid {child.pid}"):
                SqliteStore.open(path)
        await SqliteStore.open(path).close()


class TestRefusedFiles:
    @pytest.mark.parametrize(
        "content", [b"not a database", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(5000), b"\0" * 8192]
    )
    async def test_foreign_bytes(self, path: Path, content: bytes) -> None:
        path.parent.mkdir()
        path.write_bytes(content)
        self.check_refused(path, "is not an Overmesh store")

    async def test_another_programs_database(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(sqlite3.connect(path)) as foreign:
            foreign.executescript("PRAGMA journal_mode = WAL; CREATE TABLE meta (revision, compacted);")
            self.check_refused(path, "is not an Overmesh store")

    async def test_a_newer_schema(self, path: Path) -> None:
        await (await filled(path)).close()
        with closing(sqlite3.connect(path)) as newer:
            newer.execute("PRAGMA user_version = 2")
        self.check_refused(path, "has schema version 2, this controller knows 1")

    @pytest.mark.parametrize("page", [1, 2, 3, 9])
    async def test_a_damaged_page(self, path: Path, page: int) -> None:
        await (await filled(path)).close()
        self.damage(path, page)
        self.check_refused(path, "is damaged")

    async def test_a_truncated_file(self, path: Path) -> None:
        await (await filled(path)).close()
        os.truncate(path, path.stat().st_size // 2)
        self.check_refused(path, "is damaged")

    async def test_a_damaged_file_with_a_log(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy" / "store.db"
        await crashed(path, copy)
        self.damage(copy, 0, offset=100)
        self.damage(copy, 1)
        log = Path(f"{copy}-wal")
        log.write_bytes(log.read_bytes()[:4152])  # one frame, without a commit: SQLite will ignore it
        self.check_refused(copy, "is damaged")

    async def test_a_log_without_its_file(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy" / "store.db"
        await crashed(path, copy)
        copy.unlink()
        self.check_refused(copy, "store.db-wal is there, but not the file it belongs to")

    def damage(self, path: Path, page: int, offset: int = 0) -> None:
        with path.open("r+b") as file:
            file.seek(page * 4096 + offset)
            file.write(b"\xa5" * 512)

    def check_refused(self, path: Path, cause: str) -> None:
        before = contents(path.parent)
        with pytest.raises(StoreCorruptError, match=cause) as caught:
            SqliteStore.open(path)
        assert str(path) in caught.value.cause
        assert caught.value.fix
        assert contents(path.parent) == before


class TestRefusedPlaces:
    async def test_a_directory(self, tmp_path: Path) -> None:
        self.check_refused(tmp_path, "is a directory")

    async def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        self.check_refused(tmp_path / "file" / "store.db", "File exists|Not a directory")

    async def test_a_directory_that_is_read_only(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        tmp_path.chmod(0o500)
        with as_nobody():
            self.check_refused(path, "Permission denied")
        assert not path.exists()

    def check_refused(self, path: Path, cause: str) -> None:
        with pytest.raises(StoreUnavailableError, match=cause) as caught:
            SqliteStore.open(path)
        assert str(path) in caught.value.cause
        assert caught.value.fix


class TestCrash:
    async def test_what_was_acknowledged_survives_sigkill(self, path: Path) -> None:
        moments = random.Random(4711)
        before: list[WatchBatch] = []
        for _ in range(8):
            acknowledged = acknowledged_by_a_killed_writer(path, moments.randrange(1, 400))
            now = await history(path)
            assert now[: len(before)] == before, "a revision was reused"
            told = {batch.revision: batch for batch in now}
            for line in acknowledged:
                revision, key, value = line.split()
                kvs = [event.kv for event in told[int(revision)].events]
                assert [(kv.key, kv.value.decode()) for kv in kvs if kv] == [
                    (key, value),
                    (f"{key}/last", value),
                ]
            before = now

    async def test_the_log_of_a_crash_is_used(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy" / "store.db"
        await crashed(path, copy)
        assert await history(copy) == await history(path)

    def test_a_loop_that_ends_without_closing(self, path: Path) -> None:
        script = """
            import asyncio, sys
            from overmesh.controller.store.base import Put
            from overmesh.controller.store.sqlite import SqliteStore

            async def main():
                store = SqliteStore.open(sys.argv[1])
                for number in range(1000):
                    asyncio.ensure_future(store.txn((), [Put("/a", b"")]))
                await asyncio.sleep(0)
                return store

            store = asyncio.run(main())
            store._writer._thread.join()
        """
        command = [sys.executable, "-c", re.sub("^ {12}", "", script, flags=re.MULTILINE), str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


class TestFailingDisk:
    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let databases have no more than 100 pages."""
        connect = StoreFile.connect

        def connect_small(file: StoreFile) -> sqlite3.Connection:
            connection = connect(file)
            connection.execute("PRAGMA max_page_count = 100")
            return connection

        monkeypatch.setattr(StoreFile, "connect", connect_small)

    @pytest.mark.usefixtures("small")
    async def test_what_shared_a_commit_with_too_much_is_undone(self, path: Path) -> None:
        store = await filled(path, 10)
        before = await store.range("")
        watch = store.watch("", 0)
        with held() as (hold, started):
            writing = asyncio.ensure_future(store._writer.call(lambda ledger, now: hold()))
            await asyncio.to_thread(started.wait)
            too_much = store.txn((), [Put("/big", bytes(1_000_000))])
            together = asyncio.gather(
                store.txn((), [Put("/a", b"")]), store.grant(10), too_much, return_exceptions=True
            )
            await asyncio.sleep(0)
        await writing
        assert [type(outcome) for outcome in await together] == [StoreUnavailableError] * 3
        assert await store.range("") == before
        assert (await store.txn((), [Put("/b", b"")])).revision == before.revision + 1
        assert [event.key for event in (await anext(watch)).events] == ["/b"]
        await store.close()
        assert len(await history(path)) == 11

    @pytest.mark.usefixtures("small")
    async def test_a_full_database_recovers(self, path: Path) -> None:
        store = SqliteStore.open(path)
        watch = store.watch("", 0)
        accepted = await fill(store)
        assert [kv.key for kv in (await store.range("")).kvs] == accepted
        await store.compact((await store.range("")).revision)
        await store.txn((), [Delete(accepted.pop())])
        await store.txn((), [Delete(accepted.pop())])
        await store.compact((await store.range("")).revision)
        await store.txn((), [Put("/zzz", bytes(1000))])
        batches = [await anext(watch) for _ in range(len(accepted) + 5)]
        assert [batch.revision for batch in batches] == list(range(2, len(accepted) + 7))
        await store.close()
        assert len(await stored_keys(path)) == len(accepted) + 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
    async def test_a_full_disk_recovers(self, path: Path) -> None:
        with tmpfs(path.parent, "2m"):
            ballast = path.with_name("ballast")
            ballast.write_bytes(bytes(1 << 20))
            store = SqliteStore.open(path)
            lease = await store.grant(1000)
            await store.txn((), [Put("/", b"", lease)])
            accepted = await fill(store)
            with pytest.raises(StoreUnavailableError, match="no space left"):
                await store.txn((), [Put("/zzz", bytes(100_000))])
            ballast.unlink()
            await store.keepalive(lease)
            await store.txn((), [Put("/zzz", bytes(100_000))])
            await store.close()
            assert await stored_keys(path) == ["/", *accepted, "/zzz"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
    async def test_no_room_for_a_new_store(self, path: Path) -> None:
        with tmpfs(path.parent, "16k"):
            with pytest.raises(StoreUnavailableError, match=r"(?i)no space left"):
                SqliteStore.open(path)
            assert not path.exists()

    async def test_an_unexpected_error_stops_all_writing(self, path: Path) -> None:
        store = await filled(path)
        watch = store.watch("", 0)
        before = await store.range("")
        with (
            largest_file(Path(f"{path}-wal").stat().st_size + 10_000),
            pytest.raises(UnconfirmedError, match="may be lost") as caught,
        ):
            await store.txn((), [Put("/big", bytes(100_000))])
        assert "restart the controller" in caught.value.fix
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="may be lost") as refused:
                await store.txn((), [Put("/small", b"")])
            assert not isinstance(refused.value, UnconfirmedError), "it was not begun"
            with pytest.raises(StoreUnavailableError, match="may be lost"):
                await anext(watch)
        assert await store.range("") == before
        await store.close()
        assert len(await history(path)) == 100

    async def test_so_does_a_bug(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = await filled(path)
        monkeypatch.setattr(Ledger, "settle", lambda _: 1 / 0)
        calls = [store.txn((), [Put("/a", b"")]), store.txn((), [Put("/b", b"")])]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, StoreUnavailableError)
        monkeypatch.undo()
        with pytest.raises(StoreUnavailableError, match="ZeroDivisionError"):
            await store.grant(10)
        assert "has a bug" in caplog.text
        await store.close()
        assert len(await history(path)) == 100


class TestThreads:
    async def test_reads_do_not_wait_for_the_writer(self, path: Path) -> None:
        store = await filled(path)
        with held() as (hold, _):
            writing = asyncio.ensure_future(store._writer.call(lambda ledger, now: hold()))
            await asyncio.sleep(0)
            assert await store.get("/0000")
            assert len((await store.range("")).kvs) == 100
        await writing
        await store.close()

    async def test_a_get_does_not_wait_for_a_long_range(self, path: Path) -> None:
        store = await filled(path)
        with held() as (hold, started):
            reading = asyncio.ensure_future(store._readers.call(lambda tables: hold()))
            await asyncio.to_thread(started.wait)
            assert await store.get("/0000")
            await store.txn((), [Put("/a", b"")])
            assert await store.get("/a")
        await reading
        await store.close()

    async def test_a_keepalive_in_time_counts_when_the_writer_is_late(self, path: Path) -> None:
        now = 0.0
        store = SqliteStore.open(path, clock=lambda: now)
        lease = await store.grant(10)
        with held() as (hold, _):
            late = asyncio.ensure_future(store._writer.call(lambda ledger, now: hold()))
            await asyncio.sleep(0)
            now = 9
            keepalive = asyncio.ensure_future(store.keepalive(lease))
            await asyncio.sleep(0)
            now = 15
        await late
        assert await keepalive == 10
        await store.txn((), [Put("/a", b"", lease)])
        now = 19
        with pytest.raises(LeaseNotFoundError):
            await store.keepalive(lease)
        await store.close()

    async def test_a_restart_gives_a_lease_its_full_time_again(self, path: Path) -> None:
        now = 0.0
        store = SqliteStore.open(path, clock=lambda: now)
        lease = await store.grant(10)
        await store.txn((), [Put("/a", b"", lease)])
        now = 9
        await store.close()
        store = SqliteStore.open(path, clock=lambda: now)
        now = 18
        await store.txn((), ())
        assert await store.get("/a")
        now = 19
        await store.txn((), ())
        assert await store.get("/a") is None
        assert await store.grant(10) != lease
        await store.close()

    async def test_a_lease_expires_by_itself(self, path: Path) -> None:
        store = SqliteStore.open(path)
        lease = await store.grant(0.05)
        await store.txn((), [Put("/a", b"", lease)])
        watch = store.watch("", 3)
        async with asyncio.timeout(10):
            (event,) = (await anext(watch)).events
        assert event.kv is None
        await store.close()

    async def test_an_abandoned_watch_is_forgotten(self, path: Path) -> None:
        store = await filled(path)
        watch, closed = store.watch("", 0), store.watch("", 1)
        await store.txn((), [Put("/a", b"")])
        assert len(store._writer._watchers) == 2
        reference = weakref.ref(watch)
        del watch
        gc.collect()
        assert reference() is None
        await closed.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(closed)
        await store.txn((), [Put("/a", b"")])
        assert store._writer._watchers == []
        await store.close()


@contextmanager
def held() -> Iterator[tuple[Callable[[], bool], threading.Event]]:
    """Yield a function that blocks its thread until this ends, and the sign that it does."""
    started, released = threading.Event(), threading.Event()

    def hold() -> bool:
        started.set()
        return released.wait(30)

    try:
        yield hold, started
    finally:
        released.set()


async def fill(store: SqliteStore) -> list[str]:
    """Write until the store refuses; return the keys that it took."""
    accepted: list[str] = []

    async def write_for_ever() -> None:
        while True:
            key = f"/{len(accepted):05}"
            await store.txn((), [Put(key, bytes(4000))])
            accepted.append(key)

    with pytest.raises(StoreUnavailableError, match="no space left") as caught:
        await write_for_ever()
    assert caught.value.fix
    return accepted


async def stored_keys(path: Path) -> list[str]:
    store = SqliteStore.open(path)
    kvs = (await store.range("")).kvs
    await store.close()
    return [kv.key for kv in kvs]


@contextmanager
def acking_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run acking_writer.py until it is killed."""
    command = [sys.executable, "-m", "tests.unit.controller.store.acking_writer", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline()


def acknowledged_by_a_killed_writer(path: Path, kill_after: int) -> list[str]:
    with acking_writer(path) as child:
        assert child.stdout
        lines = [child.stdout.readline() for _ in range(kill_after)]
        child.send_signal(signal.SIGKILL)
        return lines + child.stdout.readlines()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root, whom no file mode stops."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def tmpfs(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this host does not let root mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: writes fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
