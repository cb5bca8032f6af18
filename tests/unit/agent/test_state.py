import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from overmesh.agent.peermap import Held
from overmesh.agent.records import Floor
from overmesh.agent.state import Identity, Keys, Membership, StateDir, issued
from overmesh.errors import CorruptStateError, NotJoinedError, StateError
from overmesh.model import NETWORK_KEY, node_key
from tests.unit.agent.world import ME, MINE, PRIVATE, ROOT, ROOTS

HELD = Held(7, 9, {"network": b"\x00\xff", "node/n2": b""}, {"node/n3": b"older"}, {"node/n4": Floor(5, 99)})


def certificate(key: EllipticCurvePrivateKey, signer: EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "overmesh root")])
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
    ).sign(signer, SHA256())


def identity() -> Identity:
    keys = replace(Keys.new(), noise=PRIVATE)
    mine = Membership(ME.id, ME.name, "mesh", ("192.0.2.1:7443",), MINE[NETWORK_KEY], MINE[node_key(ME.id)])
    return Identity(keys, mine, ROOTS, certificate(keys.tls, ROOT))


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    with state.locked():
        state.save_identity(identity())
        state.save_map(HELD)
    return state


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    state, kept = StateDir(tmp_path / "deep" / "state"), identity()
    with state.locked():
        state.save_identity(kept)
    read = state.identity()
    assert (read.membership, read.roots, read.certificate) == (kept.membership, kept.roots, kept.certificate)
    assert read.keys.public == kept.keys.public
    assert read.keys.tls.private_numbers() == kept.keys.tls.private_numbers()
    state.save_map(HELD)
    assert state.map() == HELD


def test_only_root_may_read_it(state: StateDir) -> None:
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in state.path.iterdir()} == {0o600}


def test_a_host_that_has_not_joined_has_nothing(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert (state.keys(), state.map(), state.map_time()) == (None, Held(), 0)
    with pytest.raises(NotJoinedError, match="has not joined"):
        state.identity()


@pytest.mark.parametrize("name", ["tls.key", "noise.key", "root.pem", "node.pem", "membership.json"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: b"\xff\x00" * 40, id="rubbish"),
        pytest.param(lambda data: b"[]", id="other json"),
    ],
)
def test_a_damaged_identity_is_refused_by_name(
    state: StateDir, name: str, damage: Callable[[bytes], bytes]
) -> None:
    file = state.path / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptStateError, match=f"{file} is damaged") as raised:
        state.identity()
    assert "\n" not in raised.value.cause
    assert "join again" in raised.value.fix


@pytest.mark.parametrize("name", ["tls.key", "noise.key", "root.pem", "node.pem"])
def test_a_missing_file_is_refused_by_name(state: StateDir, name: str) -> None:
    (state.path / name).unlink()
    with pytest.raises(CorruptStateError, match=f"{name} is damaged: it is missing"):
        state.identity()


def test_a_certificate_of_another_key_is_refused(state: StateDir) -> None:
    state.save_keys(Keys.new())
    with pytest.raises(CorruptStateError, match=r"node\.pem is damaged: it does not belong to tls\.key"):
        state.identity()


def test_a_certificate_of_another_root_waits_for_a_renewal(state: StateDir) -> None:
    kept, other = identity(), generate_private_key(SECP256R1())
    state.save_identity(replace(kept, certificate=certificate(kept.keys.tls, other)))
    assert not issued(state.identity())
    assert issued(kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-10],
        lambda text: text.replace('"revision":7', '"revision":8'),
        lambda text: text.replace("node/n2", "node/n9"),
        lambda text: json.dumps({"map": {}, "sha256": ""}),
        lambda text: "null",
    ],
)
def test_a_damaged_map_is_refused(state: StateDir, damage: Callable[[str], str]) -> None:
    file = state.path / "map.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(CorruptStateError, match=r"map\.json is damaged"):
        state.map()


def test_a_write_that_fails_leaves_the_old_file(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"map\.json can't be written: No space left on device"):
        state.save_map(Held())
    assert state.map() == HELD
    assert not [file for file in state.path.iterdir() if file.name.startswith(".")]


def test_a_write_is_synced_before_it_takes_the_place(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> Path:
        done.append(f"rename {new}")
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    StateDir(state.path).save_map(HELD)
    at = state.path
    assert done == [f"sync {at}/.map.json.new", f"rename {at}/map.json", f"sync {at}"]


def test_one_process_at_a_time(state: StateDir) -> None:
    assert not state.in_use()
    with state.locked():
        assert state.in_use()
        with pytest.raises(StateError, match="already running"), state.locked():
            pass
    with state.locked():
        pass


def test_wiping_leaves_nothing_of_ours_and_everything_else(state: StateDir) -> None:
    (state.path / "notes").write_text("mine")
    state.wipe()
    assert [file.name for file in state.path.iterdir()] == ["notes"]
    (state.path / "notes").unlink()
    state.wipe()
    assert not state.path.exists()
