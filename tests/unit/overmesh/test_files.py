import os
from pathlib import Path

import pytest

from overmesh.files import replace_file


def test_a_file_is_replaced_whole_and_is_nobody_elses(tmp_path: Path) -> None:
    file = tmp_path / "key"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_what_a_crash_left_aside_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".key.new").write_bytes(b"half")
    replace_file(tmp_path / "key", b"new", 0o644)
    assert (tmp_path / "key").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_the_old_content_stays_when_the_new_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    replace_file(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]
