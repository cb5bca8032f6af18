"""The files of the mesh root in a controller's state directory.

    root.key, root.pem            the root's private key and certificate
    root.next.key, root.next.pem  those of the next one, while the root is rotated (rotation/roots.py)

Every controller of a mesh has the same files: they are copied by hand, as nothing else may have them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from overmesh.controller.trust.rootkey import RootKey
from overmesh.errors import CorruptStateError, PermissionMissingError, StateError
from overmesh.files import replace_file
from overmesh.proto.roots import ROOT_NAME

_PRESENT, _NEXT = "root", "root.next"

T = TypeVar("T")


def load_or_create(state_dir: Path, pin_in_store: bytes | None) -> tuple[RootKey, ...]:
    """Return the roots whose keys are in the state directory, oldest first; on the first start, make one.

    Args:
        state_dir: where the files are or will be.
        pin_in_store: of the root that signs what is in the store; None while the store is empty.

    Raises:
        StateError: the store belongs to a root whose key is not here.
        CorruptStateError: the files can't be read as what they should be.
        PermissionMissingError: the files can't be opened or made.

    """
    try:
        finish_promotion(state_dir)
        if not _key_file(state_dir, _PRESENT).exists():
            _refuse_foreign(state_dir, pin_in_store, "is missing")
            return (_create(state_dir, _PRESENT),)
        present, following = _load(state_dir, _PRESENT), next_root(state_dir)
    except OSError as error:
        raise _unusable(state_dir, error) from None
    keys = (present, following) if following else (present,)
    if pin_in_store not in (None, *(key.pin for key in keys)):
        _refuse_foreign(state_dir, pin_in_store, "is of another mesh")
    return keys


def next_root(state_dir: Path) -> RootKey | None:
    """Return the next root, or None when there is none (yet: the key is the last file to come).

    Raises:
        CorruptStateError: its files can't be read as what they should be.

    """
    return _load(state_dir, _NEXT) if _key_file(state_dir, _NEXT).exists() else None


def make_next_root(state_dir: Path) -> RootKey:
    """Return the next root; make it unless it is there.

    Raises:
        CorruptStateError: its files can't be read as what they should be.
        PermissionMissingError: the files can't be opened or made.

    """
    try:
        return next_root(state_dir) or _create(state_dir, _NEXT)
    except OSError as error:
        raise _unusable(state_dir, error) from None


def promote(state_dir: Path) -> None:
    """Put the next root in the place of the present one, whose key is gone for good then.

    A crash in between is made up for by `finish_promotion`, which the next start begins with.
    """
    replace_file(
        _certificate_file(state_dir, _PRESENT), _certificate_file(state_dir, _NEXT).read_bytes(), 0o644
    )
    finish_promotion(state_dir)


def finish_promotion(state_dir: Path) -> None:
    """Go on where `promote` was broken off; do nothing when it was not."""
    present, following = (_certificate_file(state_dir, name) for name in (_PRESENT, _NEXT))
    if not following.exists() or not present.exists() or present.read_bytes() != following.read_bytes():
        return
    key = _key_file(state_dir, _NEXT)
    if key.exists():
        replace_file(_key_file(state_dir, _PRESENT), key.read_bytes(), 0o600)
        key.unlink()
    following.unlink()


def _refuse_foreign(state_dir: Path, pin_in_store: bytes | None, what: str) -> None:
    if pin_in_store is not None:
        raise StateError(
            f"{_key_file(state_dir, _PRESENT)} {what}, but the store is of root {pin_in_store.hex()[:16]}…",
            "copy root.key and root.pem from another controller of that mesh, restore them from a backup, "
            "or start with an empty store",
        )


def _create(state_dir: Path, name: str) -> RootKey:
    root = RootKey.new()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The key last: where there is a key, there is its certificate.
    replace_file(_certificate_file(state_dir, name), root.pem, 0o644)
    replace_file(_key_file(state_dir, name), root.private_pem, 0o600)
    return root


def _load(state_dir: Path, name: str) -> RootKey:
    key_file, certificate_file = _key_file(state_dir, name), _certificate_file(state_dir, name)
    key = _parsed(key_file, lambda data: load_pem_private_key(data, password=None))
    certificate = _parsed(certificate_file, x509.load_pem_x509_certificate)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise _corrupt(key_file, "not an ECDSA P-256 key")
    if certificate.public_key() != key.public_key():
        raise _corrupt(certificate_file, f"not the certificate of {key_file.name}")
    if certificate.subject != ROOT_NAME:
        raise _corrupt(certificate_file, f"its subject is not {ROOT_NAME.rfc4514_string()}")
    return RootKey(key, certificate)


def _key_file(state_dir: Path, name: str) -> Path:
    return state_dir / f"{name}.key"


def _certificate_file(state_dir: Path, name: str) -> Path:
    return state_dir / f"{name}.pem"


def _parsed(file: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        raise _corrupt(file, "it is missing") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _corrupt(file, "not a PEM file of the right kind") from None


def _corrupt(file: Path, why: str) -> CorruptStateError:
    return CorruptStateError(f"{file} can't be used: {why}", "restore it from a backup")


def _unusable(state_dir: Path, error: OSError) -> PermissionMissingError:
    return PermissionMissingError(
        f"{error.filename or state_dir} can't be used: {error.strerror}",
        "run as root, or name another state_dir",
    )
