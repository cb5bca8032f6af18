from pathlib import Path

import pytest

from overmesh.controller.store import open_store
from overmesh.controller.store.base import Put
from overmesh.errors import ConfigError, StoreUnavailableError


@pytest.mark.parametrize("scheme", ["sqlite:", "sqlite://", ""])
@pytest.mark.parametrize("name", ["store.db", "with:colon/store.db"])
async def test_a_path_is_a_sqlite_file(tmp_path: Path, scheme: str, name: str) -> None:
    store = open_store(f"{scheme}{tmp_path}/{name}")
    await store.txn((), [Put("/a", b"")])
    await store.close()
    assert (tmp_path / name).stat().st_size


async def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await open_store("store.db").close()
    assert (tmp_path / "store.db").exists()


@pytest.mark.parametrize("target", ["postgres://host/db", "etc:x", "mem:"])
async def test_an_unknown_scheme_names_the_known_ones(target: str) -> None:
    with pytest.raises(ConfigError, match="unknown scheme") as caught:
        open_store(target)
    assert target in caught.value.cause
    assert "sqlite:" in caught.value.fix


@pytest.mark.parametrize("target", ["", "sqlite:"])
async def test_no_place_at_all(target: str) -> None:
    with pytest.raises(ConfigError, match="names no place"):
        open_store(target)


async def test_the_stores_own_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        open_store(str(tmp_path))
