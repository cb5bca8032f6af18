"""Export, import and migrate, between both kinds of store."""

import asyncio
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from overmesh.cli.main import run
from overmesh.controller.daemon import running
from overmesh.controller.store import backup, keys, open_store
from overmesh.controller.store.base import Compare, Op, Put, TxnResult
from overmesh.controller.store.etcd import EtcdStore
from overmesh.controller.store.sqlite import SqliteStore
from overmesh.errors import ExistsError, StateError, StoreCorruptError, StoreUnavailableError
from tests.unit.controller.lab import Host, client, config
from tests.unit.controller.store.backends import EtcdBackend

CONTENT = {keys.ROOT_PIN: b"\0pin"} | {keys.token(f"{number:03}"): b"%d" % number for number in range(250)}


@pytest.fixture(params=["sqlite", "etcd"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return target_of(request.param, tmp_path)


def target_of(kind: str, path: Path) -> str:
    return EtcdBackend(path).target if kind == "etcd" else f"sqlite:{path}/empty.db"


async def content(target: str) -> backup.Content:
    store = open_store(target)
    try:
        return {kv.key: kv.value for kv in (await store.range(keys.PREFIX)).kvs}
    finally:
        await store.close()


async def test_there_and_back(target: str) -> None:
    store = open_store(target)
    await backup.fill(store, CONTENT)
    lease = await store.grant(30)
    await store.txn((), [Put(keys.presence("mesh", "a"), b"", lease)])
    assert backup.decode(backup.encode(await backup.read(store)), "x") == CONTENT
    await store.close()


async def test_what_is_not_empty_is_left_alone(target: str) -> None:
    store = open_store(target)
    await store.txn((), [Put(keys.ROOT_PIN, b"mine")])
    with pytest.raises(ExistsError, match="not empty"):
        await backup.fill(store, CONTENT)
    await store.close()
    assert await content(target) == {keys.ROOT_PIN: b"mine"}


@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_an_import_that_breaks_off(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store = open_store(target)
    assert isinstance(store, SqliteStore | EtcdStore)
    calls, txn = iter(range(at)), store.txn

    async def broken(compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if next(calls, None) is None:
            raise StoreUnavailableError("gone")
        return await txn(compares, ops)

    monkeypatch.setattr(store, "txn", broken)
    with pytest.raises(StoreUnavailableError):
        await backup.fill(store, CONTENT)
    monkeypatch.undo()
    with pytest.raises(StateError, match="not finished"):
        await backup.read(store)
    await store.close()
    with pytest.raises(StateError, match="not finished"):
        async with running(config(tmp_path / "controller", store=target)):
            pass
    store = open_store(target)
    await backup.fill(store, CONTENT)
    assert await backup.read(store) == CONTENT
    await store.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        backup.encode(CONTENT)[:-20],
        backup.encode(CONTENT).replace(b"store 1", b"store 2"),
        backup.encode({}),
        backup.encode(CONTENT | {"/elsewhere": b""}),
        backup.encode(CONTENT).replace(b'"MA=="', b'"M"'),
        b'{"format": "overmesh store 1", "keys": {"/overmesh/v1/root": 1}}',
    ],
)
def test_files_that_are_no_export(data: bytes) -> None:
    with pytest.raises(StoreCorruptError, match=r"f\.json can't be imported"):
        backup.decode(data, "f.json")


# As a user does it.


@pytest.fixture
def joined(tmp_path: Path) -> str:
    """A controller's store with a member in it, and the target that names it."""
    settings = config(tmp_path / "one")

    async def make() -> None:
        async with running(settings) as controller, client(settings, controller) as talking:
            await talking.joined(Host("a"))

    asyncio.run(make())
    return settings.store_target


def test_export_and_import(joined: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, there = tmp_path / "backup.json", f"sqlite:{tmp_path}/there.db"
    assert run(["store", "export", str(file), "--store", joined]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(["store", "import", str(file), "--store", there, "--json"]) == 0
    assert '"keys": ' in capsys.readouterr().out
    assert asyncio.run(content(there)) == asyncio.run(content(joined))
    assert run(["store", "import", str(file), "--store", there]) == 1
    assert "not empty" in capsys.readouterr().err


def test_a_mesh_moves_to_etcd_and_back(joined: str, tmp_path: Path) -> None:
    there, back = EtcdBackend(tmp_path).target, f"sqlite:{tmp_path}/back.db"
    assert run(["store", "migrate", joined, there]) == 0
    assert run(["store", "migrate", there, back]) == 0
    assert asyncio.run(content(back)) == asyncio.run(content(joined))

    async def use() -> list[str]:
        settings = config(tmp_path / "one", store=there)
        async with running(settings) as controller, client(settings, controller) as talking:
            await talking.joined(Host("b"))
            return sorted(controller.mirror.held("names", "mesh"))

    assert asyncio.run(use()) == ["a", "b"]


def test_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, missing = tmp_path / "f", tmp_path / "none.db"
    assert run(["store", "export", str(file), "--store", str(missing)]) == 1
    assert f"there is no store {missing}" in capsys.readouterr().err
    assert not file.exists()
    assert not missing.exists()


def test_a_store_without_a_mesh(tmp_path: Path) -> None:
    async def exported() -> None:
        store = open_store(f"{tmp_path}/empty.db")
        try:
            with pytest.raises(StateError, match="no mesh in this store"):
                await backup.read(store)
        finally:
            await store.close()

    asyncio.run(exported())
