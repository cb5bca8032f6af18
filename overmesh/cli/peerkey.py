"""Private keys of stock WireGuard peers, where they were made: files of 0600, as `wg genkey` writes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh import wgquick
from overmesh.config import ControllerConfig
from overmesh.controller.members.names import checked_label
from overmesh.errors import CorruptStateError, PermissionMissingError, StateError, UnconfirmedError
from overmesh.files import sync_directory


def place(config: ControllerConfig, network: str, name: str) -> Path:
    """Return where the key of a peer is kept unless the user says otherwise.

    Raises:
        InvalidError: no such name can be.

    """
    folder = config.state_dir / "peers" / checked_label("network name", network)
    return folder / f"{checked_label('peer name', name)}.key"


@contextmanager
def made(path: Path) -> Iterator[bytes]:
    """Make a key pair, keep the private key in a file, and give the public one; a block that fails undoes it.

    Not one that ends with UnconfirmedError: a member may be there by now that needs the key.

    Raises:
        StateError: there is such a file.
        PermissionMissingError: it can't be written.

    """
    pair = X25519PrivateKey.generate()
    first_of_network = not path.parent.exists()
    descriptor = _new_file(path)
    try:
        _write(descriptor, path, wgquick.key_text(pair.private_bytes_raw()) + "\n")
        yield pair.public_key().public_bytes_raw()
    except UnconfirmedError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        if first_of_network:
            with suppress(OSError):  # it is not empty: another peer came meanwhile
                path.parent.rmdir()
        raise


def _new_file(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, "written", error) from None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StateError(
            f"{path} exists: it may be the only copy of a peer's private key",
            "print that peer's configuration: `meshctl peer config NAME`; if it is gone, remove the file",
        ) from None
    except OSError as error:
        raise _unusable(path, "written", error) from None


def _write(descriptor: int, path: Path, text: str) -> None:
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
    except OSError as error:
        raise _unusable(path, "written", error) from None


def kept(path: Path, public_key: bytes, *, optional: bool) -> bytes:
    """Return the private key in a file.

    Args:
        path: the file.
        public_key: what has to belong to it.
        optional: whether there need not be such a file; the key is empty then.

    Raises:
        CorruptStateError: it holds something else.
        PermissionMissingError: it can't be read.

    """
    try:
        private = wgquick.key_value(path.read_text().strip())
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError):
            return b""
        raise _unusable(path, "read", error) from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise CorruptStateError(f"{path} holds no private key", "it takes what `wg genkey` prints") from error
    found = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    if found != public_key:
        raise CorruptStateError(
            f"{path} holds the key of another peer: its public key is {wgquick.key_text(found)}, "
            f"not {wgquick.key_text(public_key)}",
            "name the right one with --private-key-file",
        )
    return private


def forget(path: Path) -> bool:
    """Remove a file; tell whether there was one.

    Raises:
        PermissionMissingError: it can't be removed.

    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, "removed", error) from None
    return True


def _unusable(path: Path, what: str, error: OSError) -> PermissionMissingError:
    return PermissionMissingError(
        f"{path} can't be {what}: {error.strerror}", "run as root, or name another --private-key-file"
    )
