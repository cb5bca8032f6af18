"""Everything this host keeps, in one directory that only root may read.

    tls.key          the TLS key (PEM, P-256); never leaves the host
    noise.key        the X25519 key, base64 of 32 bytes as WireGuard writes them; never leaves the host
    root.pem         the mesh roots that are trusted: the one that was pinned when the host joined, or what
                     the map has made of it since; two while the root is rotated
    node.pem         this node's certificate, issued by one of them
    membership.json  who this host is and where its controllers are; written last, so it says "joined"
    keychange.json   new keys, while this host changes its own, see rekeying.py
    map.json         the last peer map, see mapfile.py
    fastpath.log     what the fastpath said
    lock             held by the one process that uses the directory

All but the map are replaced whole: written aside, synced, renamed, the directory synced. What a crash leaves
is the old file or the new one.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from overmesh.agent import keyfiles
from overmesh.agent.keychange import KeyChange
from overmesh.agent.mapfile import MapFile
from overmesh.agent.peermap import Held
from overmesh.errors import CorruptStateError, NotJoinedError, PermissionMissingError, StateError
from overmesh.files import as_bytes, as_text, json_line, replace_file
from overmesh.proto.roots import Roots

T = TypeVar("T")

_LOCK = "lock"
_KEYS = ("tls.key", "noise.key")
_MAP = "map.json"
_CHANGE = "keychange.json"
_ALL = ("membership.json", _MAP, _CHANGE, "node.pem", "root.pem", *_KEYS, "fastpath.log", _LOCK)


@dataclass(frozen=True, slots=True)
class Keys:
    """The private keys of this host."""

    tls: EllipticCurvePrivateKey
    noise: X25519PrivateKey

    @classmethod
    def new(cls) -> Self:
        """Return fresh keys."""
        return cls(generate_private_key(SECP256R1()), X25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        """The 32 bytes by which others know this host."""
        return self.noise.public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Membership:
    """What the controller answered when this host joined. network and node: encoded Signed.

    host_id: of the machine that joined, to tell a copy of its disk; empty when an older version joined.
    join: host:port of the join port that it joined at. keys_since: unix seconds, 0 when it is not known.
    quarantined: the agent's run that a controller took for a copy, while it is one; else empty.
    """

    node_id: str
    name: str
    network_name: str
    controllers: tuple[str, ...]
    network: bytes
    node: bytes
    host_id: str = ""
    join: tuple[str, ...] = ()
    keys_since: int = 0
    quarantined: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """All that makes this host a member."""

    keys: Keys
    membership: Membership
    roots: Roots
    certificate: x509.Certificate

    @property
    def tls_pem(self) -> tuple[bytes, bytes, bytes]:
        """Roots, private key and certificate, as `grpc.ssl_channel_credentials` takes them."""
        return (
            self.roots.pem,
            keyfiles.tls_text(self.keys.tls),
            self.certificate.public_bytes(Encoding.PEM),
        )


class StateDir:
    """The directory. Reading methods raise CorruptStateError naming the file that is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = MapFile(path / _MAP)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory if need be and hold it for this process alone.

        Raises:
            StateError: another process has it.
            PermissionMissingError: it can't be made or opened.

        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PermissionMissingError(
                f"{self.path} can't be used: {error.strerror}", "run as root, or name another state_dir"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise StateError(
                f"an agent is already running on {self.path}",
                "see `meshctl status`, or stop that agent first",
            ) from None
        finally:
            os.close(descriptor)

    def in_use(self) -> bool:
        """Tell whether another process holds the directory."""
        try:
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unusable(self.path, error) from None
        try:
            _lock(descriptor, self.path)
        except StateError:
            return True
        finally:
            os.close(descriptor)
        return False

    # Identity.

    def keys(self) -> Keys | None:
        """Return this host's keys, or None when it has none yet."""
        tls, noise = (self.path / name for name in _KEYS)
        if not (tls.exists() and noise.exists()):
            return None
        return self._keys()

    def _keys(self) -> Keys:
        return Keys(
            self._read("tls.key", keyfiles.tls_key, "an ECDSA key in PEM"),
            self._read("noise.key", keyfiles.noise_key, "32 bytes in base64"),
        )

    def save_keys(self, keys: Keys) -> None:
        """Keep the keys."""
        self._write("tls.key", keyfiles.tls_text(keys.tls))
        self._write("noise.key", keyfiles.noise_text(keys.noise))

    def identity(self) -> Identity:
        """Return who this host is.

        Raises:
            NotJoinedError: it has not joined.

        """
        if not (self.path / "membership.json").exists():
            raise NotJoinedError(
                "this host has not joined a mesh", "run the line that `meshctl token create` printed"
            )
        identity = Identity(
            self._keys(),
            self._read("membership.json", _membership, "a membership in JSON"),
            self._read("root.pem", Roots.from_pem, "certificates in PEM"),
            self._read("node.pem", x509.load_pem_x509_certificate, "a certificate in PEM"),
        )
        change = self.key_change()
        if change and change.certificate:
            # The two files of the same may be half written.
            keys = replace(identity.keys, tls=change.tls)
            identity = replace(identity, keys=keys, certificate=change.certificate)
        # Whether a root that is trusted issued it is another question: renewal.py gets one from it.
        if identity.certificate.public_key() != identity.keys.tls.public_key():
            raise self.corrupt("node.pem", "it does not belong to tls.key")
        return identity

    def save_identity(self, identity: Identity) -> None:
        """Keep all of it; the membership last."""
        self.save_keys(identity.keys)
        self._write("root.pem", identity.roots.pem)
        self._write("node.pem", identity.certificate.public_bytes(Encoding.PEM))
        self._write("membership.json", _membership_text(identity.membership))

    def change_identity(self, before: Identity, after: Identity) -> None:
        """Keep what a renewal, or another mesh root, has made of it: what a crash leaves is consistent."""
        both = Roots(tuple(dict.fromkeys((*before.roots.certificates, *after.roots.certificates))))
        self.save_identity(replace(after, roots=both))
        if both != after.roots:
            self._write("root.pem", after.roots.pem)

    # A change of keys.

    def key_change(self) -> KeyChange | None:
        """Return the change of keys that is under way."""
        if not (self.path / _CHANGE).exists():
            return None
        return self._read(_CHANGE, KeyChange.decode, "a change of keys in JSON")

    def save_key_change(self, change: KeyChange) -> None:
        """Keep how far the change is."""
        self._write(_CHANGE, change.encode())

    def forget_key_change(self) -> None:
        """Drop it: it is finished, or of a membership that this host no longer has."""
        (self.path / _CHANGE).unlink(missing_ok=True)

    # The map.

    def map(self) -> Held:
        """Return the last map, an empty one when there is none."""
        if not self._map.path.exists():
            return Held()
        return self._loaded(_MAP, self._map.load, "a map with right checksums")

    def save_map(self, held: Held) -> None:
        """Keep the map; it is on disk when this returns."""
        self._saved(_MAP, lambda: self._map.save(held))

    def map_time(self) -> float:
        """Return when the map was last kept (unix seconds), 0 when there is none."""
        try:
            return self._map.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def forget_map(self) -> None:
        """Drop the map: it belongs to a membership that this host no longer has."""
        self._map.forget()

    def wipe(self) -> None:
        """Remove all that is kept, and the directory if nothing else is in it."""
        for name in _ALL:
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def _read(self, name: str, parse: Callable[[bytes], T], what: str) -> T:
        return self._loaded(name, lambda: parse((self.path / name).read_bytes()), what)

    def _loaded(self, name: str, load: Callable[[], T], what: str) -> T:
        try:
            return load()
        except PermissionError:
            raise PermissionMissingError(f"{self.path / name} can't be read", "run as root") from None
        except FileNotFoundError:
            raise self.corrupt(name, "it is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.corrupt(name, f"it is not {what}") from None

    def corrupt(self, name: str, why: str) -> CorruptStateError:
        """Return the error for a file that is not what it should be."""
        return CorruptStateError(
            f"{self.path / name} is damaged: {why}",
            f"restore it from a backup, or remove {self.path} and join again with a new token",
        )

    def _write(self, name: str, data: bytes) -> None:
        self._saved(name, lambda: replace_file(self.path / name, data))

    def _saved(self, name: str, save: Callable[[], None]) -> None:
        try:
            save()
        except OSError as error:
            raise StateError(f"{self.path / name} can't be written: {error.strerror}") from None


def _unusable(path: Path, error: OSError) -> PermissionMissingError:
    return PermissionMissingError(
        f"{path} can't be used: {error.strerror}", "run as root, or name another state_dir"
    )


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateError(
            f"an agent is already running on {path}", "see `meshctl status`, or stop that agent first"
        ) from None


def issued(identity: Identity) -> bool:
    """Tell whether the certificate was issued by a root that is trusted, for this host's TLS key."""
    own = identity.certificate.public_key() == identity.keys.tls.public_key()
    return own and bool(identity.roots.issuer(identity.certificate))


# How each file is written.


def _membership_text(membership: Membership) -> bytes:
    return json_line(
        {
            "node_id": membership.node_id,
            "name": membership.name,
            "network_name": membership.network_name,
            "controllers": list(membership.controllers),
            "network": as_text(membership.network),
            "node": as_text(membership.node),
            "host_id": membership.host_id,
            "join": list(membership.join),
            "keys_since": membership.keys_since,
            "quarantined": membership.quarantined,
        }
    )


def _membership(data: bytes) -> Membership:
    value = json.loads(data)
    return Membership(
        node_id=str(value["node_id"]),
        name=str(value["name"]),
        network_name=str(value["network_name"]),
        controllers=tuple(str(target) for target in value["controllers"]),
        network=as_bytes(value["network"]),
        node=as_bytes(value["node"]),
        host_id=str(value.get("host_id", "")),
        join=tuple(str(target) for target in value.get("join", ())),
        keys_since=int(value.get("keys_since", 0)),
        quarantined=str(value.get("quarantined", "")),
    )
