"""Certificates for etcd, looked at before gRPC gets them: of a wrong one it says too little, and later."""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import Certificate, InvalidVersion, load_pem_x509_certificates

from overmesh.errors import ConfigError, StoreUnavailableError

# Seconds between two looks at the files.
_LOOK_EVERY = 1.0


class Renewable:
    """What to connect with: that of the files as they were when all of them were last right.

    Args:
        files: paths of PEM files: `ca`, and `cert` and `key` to show one of our own; none: no TLS.

    Raises:
        ConfigError, StoreUnavailableError: see `credentials`.

    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._contents = _contents(files)
        self._looked = time.monotonic()
        self.credentials = credentials(files, self._contents) if files else None

    def look(self) -> bool:
        """Take over what is in the files now; return whether it was another certificate, and a good one."""
        if time.monotonic() < self._looked + _LOOK_EVERY:
            return False
        self._looked = time.monotonic()
        # Files that are being written, or are yet to be renewed, will be looked at again.
        with suppress(ConfigError, StoreUnavailableError):
            contents = _contents(self._files)
            if contents != self._contents:
                self.credentials, self._contents = credentials(self._files, contents), contents
                return True
        return False

    def check(self) -> None:
        """Raise StoreUnavailableError when nobody could connect with what is in the files now."""
        try:
            if self._files:
                credentials(self._files, _contents(self._files))
        except ConfigError as error:
            raise StoreUnavailableError(error.cause, error.fix) from None


def credentials(files: Mapping[str, Path], contents: Mapping[str, bytes]) -> grpc.ChannelCredentials:
    """Return what to connect with.

    Args:
        files: their paths, for the messages.
        contents: what is in them, as `Renewable` names them.

    Raises:
        ConfigError: a file can't be read or holds no such thing, or the key is of another certificate.
        StoreUnavailableError: the certificate is not valid now. A later start may find it, or the clock,
            renewed: so this is no ConfigError, after which systemd would not start us again.

    """
    _certificate("ca", files["ca"], contents["ca"])
    if "cert" in files:
        ours = _certificate("cert", files["cert"], contents["cert"])
        if _spki(ours.public_key()) != _spki(_private_key(files["key"], contents["key"]).public_key()):
            raise ConfigError(
                f"key={files['key']} of the store is not the key of cert={files['cert']}",
                "name the two that were made together",
            )
        _check_time(ours, files["cert"])
    return grpc.ssl_channel_credentials(contents["ca"], contents.get("key"), contents.get("cert"))


def _contents(files: Mapping[str, Path]) -> Mapping[str, bytes]:
    return {option: _read(option, path) for option, path in files.items()}


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}={path} of the store can't be read: {error.strerror}") from None


def _certificate(option: str, path: Path, pem: bytes) -> Certificate:
    """Return the first in a file, with a public key that can be read; others may follow."""
    try:
        first = load_pem_x509_certificates(pem)[0]
        first.public_key()
    except (ValueError, InvalidVersion, UnsupportedAlgorithm):
        raise ConfigError(f"{option}={path} of the store holds no certificate", "name a PEM file") from None
    return first


def _private_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        cause = f"key={path} of the store is locked with a password"
        raise ConfigError(cause, "name a file that holds it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"key={path} of the store holds no private key", "name a PEM file") from None


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_time(certificate: Certificate, path: Path) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise StoreUnavailableError(
            f"cert={path} of the store is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC only",
            "renew it, or set this host's clock right",
        )
