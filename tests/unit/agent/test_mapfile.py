import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.agent.mapfile import MapFile
from overmesh.agent.peermap import Held
from overmesh.agent.records import Floor

MANY = Held(3, 3, {f"node/{number}": bytes(200) for number in range(1000)})


def moved(held: Held, number: int) -> Held:
    return replace(held, revision=held.revision + 1, items={**held.items, f"node/{number}": b"moved"})


@pytest.fixture
def file(tmp_path: Path) -> MapFile:
    file = MapFile(tmp_path / "map.json")
    file.save(MANY)
    return file


def test_a_change_is_a_line_and_what_is_read_back_is_all_of_it(file: MapFile) -> None:
    before, held = file.path.stat(), MANY
    for number in range(5):
        held = moved(held, number)
        file.save(held)
    after = file.path.stat()
    assert after.st_ino == before.st_ino
    assert after.st_size - before.st_size < 5 * 300
    assert MapFile(file.path).load() == held


def test_changes_that_outweigh_the_map_are_folded_into_it(file: MapFile) -> None:
    whole, held = file.path.stat().st_size, MANY
    for _ in range(5):
        held = replace(held, items={key: os.urandom(200) for key in held.items})
        file.save(held)
        assert file.path.stat().st_size < 2 * whole + (64 << 10)
        assert MapFile(file.path).load() == held


@pytest.mark.parametrize("lost", [1, 2, 50, 120])
def test_a_torn_end_is_as_if_it_had_never_been_begun(file: MapFile, lost: int) -> None:
    first = moved(MANY, 1)
    file.save(first)
    file.save(moved(first, 2))
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-lost])
    again = MapFile(file.path)
    # All but the end of the line that says it ended.
    assert again.load() == (moved(first, 2) if lost == 1 else first)
    again.save(moved(first, 3))
    assert MapFile(file.path).load() == moved(first, 3)


def _without_the_second(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize(
    "damage",
    [
        _without_the_second,
        lambda lines: [lines[0], lines[1].replace(b"node/1", b"node/7"), lines[2]],
        lambda lines: [lines[0], lines[2], lines[1]],
        lambda lines: [lines[0], b"{", lines[2]],
        lambda lines: [lines[0], b"null", lines[2]],
        lambda lines: [lines[0].replace(b"node/5", b"node/x"), *lines[1:]],
        lambda lines: [b"", *lines],
        lambda lines: lines[1:],
    ],
)
def test_damage_anywhere_else_is_found(file: MapFile, damage: Callable[[list[bytes]], list[bytes]]) -> None:
    file.save(moved(MANY, 1))
    file.save(moved(moved(MANY, 1), 2))
    file.save(moved(moved(moved(MANY, 1), 2), 3))
    *lines, last = file.path.read_bytes().splitlines()
    file.path.write_bytes(b"\n".join([*damage(lines), last]) + b"\n")
    with pytest.raises((ValueError, KeyError, TypeError)):
        MapFile(file.path).load()


def test_a_change_that_can_not_be_synced_is_not_in_the_file(
    file: MapFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.save(moved(MANY, 1))
    assert MapFile(file.path).load() == MANY
    file.save(moved(MANY, 2))
    assert MapFile(file.path).load() == moved(MANY, 2)


def test_a_file_that_was_forgotten_is_written_whole(file: MapFile) -> None:
    file.forget()
    assert not file.path.exists()
    file.save(MANY)
    assert MapFile(file.path).load() == MANY


_KEYS = st.sampled_from(["network", "node/a", "node/b", "endpoints/a"])
_BYTES = st.binary(max_size=4)
_HELD: Any = st.builds(
    Held,
    revision=st.integers(0, 1 << 40),
    newest=st.integers(0, 1 << 40),
    items=st.dictionaries(_KEYS, _BYTES),
    good=st.dictionaries(_KEYS, _BYTES),
    floors=st.dictionaries(_KEYS, st.builds(Floor, st.integers(0, 1 << 40), st.integers(0, 1 << 40))),
)


@given(st.lists(_HELD, min_size=1, max_size=5))
def test_whatever_was_kept_last_is_what_is_read(maps: list[Held]) -> None:
    with TemporaryDirectory() as place:
        file = MapFile(Path(place) / "map.json")
        for held in maps:
            file.save(held)
            assert MapFile(file.path).load() == held
