import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256

from overmesh.controller.trust.rootfiles import load_or_create, make_next_root, next_root, promote
from overmesh.errors import CorruptStateError, PermissionMissingError, StateError
from tests.unit.controller.lab import ROOT


def test_the_root_is_made_once_and_kept(tmp_path: Path) -> None:
    (made,) = load_or_create(tmp_path, None)
    assert made.pin == made.certificate.fingerprint(SHA256())
    assert stat.S_IMODE((tmp_path / "root.key").stat().st_mode) == 0o600
    assert load_or_create(tmp_path, None)[0].pin == load_or_create(tmp_path, made.pin)[0].pin == made.pin
    assert sorted(file.name for file in tmp_path.iterdir()) == ["root.key", "root.pem"]


def test_a_start_that_was_killed_between_the_two_files_is_made_again(tmp_path: Path) -> None:
    load_or_create(tmp_path, None)
    (tmp_path / "root.key").unlink()
    (tmp_path / ".root.key.new").write_bytes(b"half of")
    assert load_or_create(tmp_path, None)[0].pin == load_or_create(tmp_path, None)[0].pin


def test_no_key_for_a_store_that_has_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"root\.key is missing") as raised:
        load_or_create(tmp_path, ROOT.pin)
    assert "from another controller" in raised.value.fix
    assert not (tmp_path / "root.key").exists()


def test_the_key_of_another_mesh(tmp_path: Path) -> None:
    load_or_create(tmp_path, None)
    with pytest.raises(StateError, match="is of another mesh"):
        load_or_create(tmp_path, ROOT.pin)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("root.key", b"", "not a PEM file"),
        ("root.key", b"\xff" * 99, "not a PEM file"),
        ("root.pem", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "not a PEM file"),
        ("root.pem", ROOT.pem, r"not the certificate of root\.key"),
        ("root.pem", None, "it is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    load_or_create(tmp_path, None)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CorruptStateError, match=message) as raised:
        load_or_create(tmp_path, None)
    assert str(tmp_path / file) in raised.value.cause


def test_a_directory_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PermissionMissingError, match="file"):
        load_or_create(tmp_path / "file" / "state", None)


def test_the_next_root_is_beside_the_present_one_until_it_takes_its_place(tmp_path: Path) -> None:
    (present,) = load_or_create(tmp_path, None)
    assert next_root(tmp_path) is None
    following = make_next_root(tmp_path)
    assert make_next_root(tmp_path).pin == following.pin != present.pin
    for pin in (present.pin, following.pin):
        assert [key.pin for key in load_or_create(tmp_path, pin)] == [present.pin, following.pin]
    promote(tmp_path)
    assert [key.pin for key in load_or_create(tmp_path, following.pin)] == [following.pin]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["root.key", "root.pem"]
    with pytest.raises(StateError, match="is of another mesh"):
        load_or_create(tmp_path, present.pin)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_promotion_that_was_killed_half_way_is_finished_by_the_next_start(
    tmp_path: Path, steps: int
) -> None:
    load_or_create(tmp_path, None)
    following = make_next_root(tmp_path)
    for name in ("pem", "key")[:steps]:
        (tmp_path / f"root.{name}").write_bytes((tmp_path / f"root.next.{name}").read_bytes())
    if steps == 3:
        (tmp_path / "root.next.key").unlink()
    assert [key.pin for key in load_or_create(tmp_path, following.pin)] == [following.pin]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["root.key", "root.pem"]


def test_a_next_root_of_which_only_the_certificate_came_is_not_there_yet(tmp_path: Path) -> None:
    (present,) = load_or_create(tmp_path, None)
    (tmp_path / "root.next.pem").write_bytes(ROOT.pem)
    assert [key.pin for key in load_or_create(tmp_path, None)] == [present.pin]
