"""The mesh root: it issues every certificate and signs every membership record.

One ECDSA P-256 key (gRPC's TLS refuses Ed25519 leaves). It lies in the controllers' state directories
(rootfiles.py) and nowhere else: not in the store, so that whoever can write there still can't add a peer.
Agents pin the root's certificate when they join; how it is replaced, rotation/roots.py tells.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from overmesh import rpc
from overmesh.config import CERTIFICATE_LIFETIME
from overmesh.controller.trust.rootkey import RootKey, private_pem
from overmesh.errors import InvalidError
from overmesh.model import Record
from overmesh.proto.roots import Roots

MEMBERSHIP_DAYS = 825
# Seconds.
CERTIFICATE_LIFETIMES = range(10, MEMBERSHIP_DAYS * 86400 + 1)


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


# Not a network's name, whatever networks are called: no node can have it in its certificate.
_CONTROLLER_SCHEME = "overmesh-controller:"


def check_controller(auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """Raise InvalidError unless the caller's certificate is that of a controller of this mesh."""
    uris = list(auth_context.get("peer_uri", ()))
    if len(uris) != 1 or not uris[0].startswith(_CONTROLLER_SCHEME.encode()):
        raise InvalidError("only controllers may ask this")


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


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A controller's certificate with its chain and private key (PEM); both moments in unix seconds."""

    key: bytes = field(repr=False)
    chain: bytes
    since: float
    until: float


class MeshRoot:
    """The mesh's root: the key that signs, and while it is rotated those before and after it.

    Args:
        keys: of the roots whose keys are here, oldest first. The first one signs, unless `sign_with` says
            another.
        lifetime: of the certificates that it issues, in seconds.
        clock: unix seconds.

    """

    def __init__(
        self,
        *keys: RootKey,
        lifetime: int = CERTIFICATE_LIFETIME,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self.signing = keys[0]
        self.lifetime = lifetime
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def new(cls) -> Self:
        """Return a fresh root."""
        return cls(RootKey.new())

    # Which one signs.

    def hold(self, *keys: RootKey) -> None:
        """Hold these keys from now on; the one that signs is among them."""
        self.keys = keys
        self._changed()

    def sign_with(self, pin: bytes) -> bool:
        """Sign with the root that has this pin from now on; False when its key is not here."""
        key = next((key for key in self.keys if key.pin == pin), None)
        if key and key is not self.signing:
            self.signing = key
            self._changed()
        return key is not None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when another root signs, or other keys are held."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    @property
    def anchor(self) -> Roots:
        """The oldest root that is held: from here the records in the store lead to all that are trusted."""
        return Roots((self.keys[0].certificate,))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the certificate of the root that signs."""
        return self.signing.fingerprint

    @property
    def certificate(self) -> x509.Certificate:
        """Of the root that signs."""
        return self.signing.certificate

    @property
    def der(self) -> bytes:
        """The same in DER."""
        return self.signing.der

    @property
    def pem(self) -> bytes:
        """The same in PEM."""
        return self.signing.pem

    @property
    def pin(self) -> bytes:
        """SHA-256 of the same: by it the store says which root signs."""
        return self.signing.pin

    @property
    def public_key(self) -> EllipticCurvePublicKey:
        """Of the root that signs."""
        return self.signing.public_key

    # Signing.

    def sign(self, record: Record) -> bytes:
        """Return the record as an encoded Signed."""
        return self.signing.sign(record)

    def mac(self, key: str, value: bytes) -> bytes:
        """Return what marks a value in the store as this mesh's own (hex).

        For what only controllers read, where a record's signature is not needed: without it, whoever
        can write to the store could make a token and join with it.
        """
        return self.signing.mac(key, value)

    def is_mac(self, key: str, value: bytes, mac: bytes) -> bool:
        """Tell whether one of the roots held here marked a value."""
        return any(hmac.compare_digest(mac, held.mac(key, value)) for held in self.keys)

    def issue_node(self, request: CertificateRequest, identity: Identity) -> bytes:
        """Return a node's TLS client certificate (DER)."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        leaf = self.signing.leaf(
            identity.node_id, request.public_key, names, purpose, self._clock(), self.lifetime
        )
        return leaf.public_bytes(Encoding.DER)

    def issue_controller(self, controller_id: str) -> ServerCertificate:
        """Return a fresh certificate with its key by which other controllers know this one as their like."""
        key = generate_private_key(SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(_CONTROLLER_SCHEME + controller_id)]
        now, purpose = self._clock(), ExtendedKeyUsageOID.CLIENT_AUTH
        leaf = self.signing.leaf("overmesh controller", key.public_key(), names, purpose, now, self.lifetime)
        return ServerCertificate(private_pem(key), leaf.public_bytes(Encoding.PEM), now, now + self.lifetime)

    def issue_server(self, hosts: Iterable[str]) -> ServerCertificate:
        """Return a fresh server certificate with its key.

        Args:
            hosts: names and addresses that it is to be valid for, besides rpc.CONTROLLER_NAME.

        """
        key = generate_private_key(SECP256R1())
        names = [_general_name(host) for host in dict.fromkeys((rpc.CONTROLLER_NAME, "localhost", *hosts))]
        now, purpose = self._clock(), ExtendedKeyUsageOID.SERVER_AUTH
        leaf = self.signing.leaf("overmesh controller", key.public_key(), names, purpose, now, self.lifetime)
        # The root goes along in the chain: a host that does not trust it can see which one it is.
        return ServerCertificate(
            private_pem(key), leaf.public_bytes(Encoding.PEM) + self.pem, now, now + self.lifetime
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
