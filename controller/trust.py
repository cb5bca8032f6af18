"""The mesh root: it issues every certificate and signs every membership record.

One ECDSA P-256 key (gRPC's TLS refuses Ed25519 leaves). It lies in the controller's state directory
and nowhere else: not in the store, so that whoever can write there still can't add a peer.
Agents pin the root's certificate when they join.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from overmesh import rpc
from overmesh.errors import CorruptStateError, InvalidError, PermissionMissingError, StateError
from overmesh.files import replace_file
from overmesh.model import Record
from overmesh.proto import signed
from overmesh.token import root_pin

MEMBERSHIP_DAYS = 825
_ROOT_DAYS = 20 * 365
_SERVER_DAYS = 825
_CLOCK_SKEW = timedelta(hours=1)

_KEY_FILE = "root.key"
_CERTIFICATE_FILE = "root.pem"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls on the mesh port, as the client certificate says."""

    network: str
    node_id: str

    @property
    def uri(self) -> str:
        """The URI in the certificate's subject alternative names."""
        return f"overmesh:{self.network}/{self.node_id}"

    @classmethod
    def of_caller(cls, auth_context: Mapping[str, Iterable[bytes]]) -> Self:
        """Read a gRPC call's `context.auth_context()`; nothing else says who calls.

        Raises:
            InvalidError: the certificate is not a node's.

        """
        uris = [uri.decode(errors="replace") for uri in auth_context.get("peer_uri", ())]
        scheme, _, path = uris[0].partition(":") if len(uris) == 1 else ("", "", "")
        network, _, node_id = path.partition("/")
        if scheme != "overmesh" or not network or not node_id:
            raise InvalidError("the client certificate is not that of a node", "join this host again")
        return cls(network, node_id)


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A certificate request whose signature proved that the asker holds the key."""

    public_key: EllipticCurvePublicKey

    @classmethod
    def parse(cls, csr: bytes) -> Self:
        """Read a PKCS#10 request (DER).

        Raises:
            InvalidError: not a request, not for a P-256 key, or not signed by that key.

        """
        try:
            request = x509.load_der_x509_csr(csr)
            key = request.public_key()
            valid = request.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            raise InvalidError("the certificate request can't be read (PKCS#10, DER)") from None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            raise InvalidError("the certificate request is not for an ECDSA P-256 key")
        if not valid:
            raise InvalidError("the certificate request is not signed by its own key")
        return cls(key)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the public key (DER, SubjectPublicKeyInfo)."""
        return hashlib.sha256(
            self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()


class MeshRoot:
    """The root's key at work."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.der = certificate.public_bytes(Encoding.DER)
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.pin = root_pin(self.der)
        self.public_key = key.public_key()
        self._mac_key = HKDF(SHA256(), 32, salt=None, info=b"overmesh store v1").derive(_private_pem(key))

    @classmethod
    def new(cls) -> Self:
        """Return a fresh root."""
        key = generate_private_key(SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "overmesh root")])
        builder = _builder(name, name, key.public_key(), _ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(ca=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return cls(key, builder.sign(key, SHA256()))

    def sign(self, record: Record) -> bytes:
        """Return the record as an encoded Signed."""
        return signed.sign(record, self._key)

    def mac(self, key: str, value: bytes) -> bytes:
        """Return what marks a value in the store as this mesh's own (hex; HMAC, RFC 2104).

        For what only controllers read, where a record's signature is not needed: without it, whoever
        can write to the store could make a token and join with it.
        """
        return hmac.new(self._mac_key, key.encode() + b"\0" + value, hashlib.sha256).hexdigest().encode()

    def issue_node(
        self, request: CertificateRequest, identity: Identity, days: int = MEMBERSHIP_DAYS
    ) -> bytes:
        """Return a node's TLS client certificate (DER)."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        leaf = self._leaf(identity.node_id, request.public_key, names, purpose, days)
        return leaf.public_bytes(Encoding.DER)

    def server_credentials(self, hosts: Iterable[str], *, mutual: bool) -> grpc.ServerCredentials:
        """Return credentials with a fresh server certificate that lives in memory only.

        Args:
            hosts: names and addresses that it is to be valid for, besides rpc.CONTROLLER_NAME.
            mutual: whether callers have to show a certificate of this root.

        """
        key = generate_private_key(SECP256R1())
        names = [_general_name(host) for host in dict.fromkeys((rpc.CONTROLLER_NAME, "localhost", *hosts))]
        leaf = self._leaf(
            "overmesh controller", key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, _SERVER_DAYS
        )
        # The root goes along in the chain: a joining agent looks for its pin there.
        chain = leaf.public_bytes(Encoding.PEM) + self.pem
        return grpc.ssl_server_credentials(
            [(_private_pem(key), chain)],
            root_certificates=self.pem if mutual else None,
            require_client_auth=mutual,
        )

    def _leaf(
        self,
        common_name: str,
        public_key: EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        days: int,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self.certificate.subject, public_key, days)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.public_key)
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return builder.sign(self._key, SHA256())


def load_or_create(state_dir: Path, pin_in_store: bytes | None) -> MeshRoot:
    """Return the root in the state directory; on the very first start, make it.

    Args:
        state_dir: where root.key and root.pem are or will be.
        pin_in_store: of the root that signed what is in the store; None while the store is empty.

    Raises:
        StateError: the store belongs to a root whose key is not here.
        CorruptStateError: the files can't be read as what they should be.
        PermissionMissingError: the files can't be opened or made.

    """
    try:
        if not (state_dir / _KEY_FILE).exists():
            _refuse_foreign(state_dir, pin_in_store, "is missing")
            return _create(state_dir)
        root = _load(state_dir)
    except OSError as error:
        raise PermissionMissingError(
            f"{error.filename or state_dir} can't be used: {error.strerror}",
            "run as root, or name another state_dir",
        ) from None
    if pin_in_store not in (None, root.pin):
        _refuse_foreign(state_dir, pin_in_store, "is of another mesh")
    return root


def _refuse_foreign(state_dir: Path, pin_in_store: bytes | None, what: str) -> None:
    if pin_in_store is not None:
        raise StateError(
            f"{state_dir / _KEY_FILE} {what}, but the store is of root {pin_in_store.hex()[:16]}…",
            "restore root.key and root.pem of that mesh, or start with an empty store",
        )


def _create(state_dir: Path) -> MeshRoot:
    root = MeshRoot.new()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The key last: where there is a key, there is its certificate.
    replace_file(state_dir / _CERTIFICATE_FILE, root.pem, 0o644)
    replace_file(state_dir / _KEY_FILE, _private_pem(root._key), 0o600)
    return root


def _load(state_dir: Path) -> MeshRoot:
    key_file, certificate_file = state_dir / _KEY_FILE, state_dir / _CERTIFICATE_FILE
    key = _parsed(key_file, lambda data: load_pem_private_key(data, password=None))
    certificate = _parsed(certificate_file, x509.load_pem_x509_certificate)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise _corrupt(key_file, "not an ECDSA P-256 key")
    if certificate.public_key() != key.public_key():
        raise _corrupt(certificate_file, "not the certificate of root.key")
    return MeshRoot(key, certificate)


def _parsed(file: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        raise _corrupt(file, "it is missing") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _corrupt(file, "not a PEM file of the right kind") from None


def _corrupt(file: Path, why: str) -> CorruptStateError:
    return CorruptStateError(f"{file} can't be used: {why}", "restore it from a backup")


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + timedelta(days=days),
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
