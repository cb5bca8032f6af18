"""One root's key at work: it signs records and certificates, and marks what only controllers read."""

import time
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from overmesh.model import Record
from overmesh.proto import signed
from overmesh.proto.roots import ROOT_NAME

_ROOT_SECONDS = 20 * 365 * 86400
# How far a clock may be behind; less for certificates that live shorter than this allows.
_CLOCK_SKEW = 3600


class RootKey:
    """The key and certificate of one mesh root."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.der = certificate.public_bytes(Encoding.DER)
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.pin = certificate.fingerprint(SHA256())
        self.public_key = key.public_key()
        self._as_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.public_key)
        mac_key = HKDF(SHA256(), 32, salt=None, info=b"overmesh store v1").derive(self.private_pem)
        self._mac = HMAC(mac_key, SHA256())

    @classmethod
    def new(cls) -> Self:
        """Return a fresh root."""
        key = generate_private_key(SECP256R1())
        builder = _builder(ROOT_NAME, ROOT_NAME, key.public_key(), time.time(), _ROOT_SECONDS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(ca=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return cls(key, builder.sign(key, SHA256()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex."""
        return self.pin.hex()

    @property
    def private_pem(self) -> bytes:
        """The private key as it is kept."""
        return private_pem(self._key)

    def sign(self, record: Record) -> bytes:
        """Return the record as an encoded Signed."""
        return signed.sign(record, self._key)

    def mac(self, key: str, value: bytes) -> bytes:
        """Return what marks a value in the store as this mesh's own (hex; HMAC, RFC 2104)."""
        marking = self._mac.copy()
        marking.update(key.encode() + b"\0" + value)
        return marking.finalize().hex().encode()

    def leaf(
        self,
        common_name: str,
        public_key: EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        now: float,
        seconds: int,
    ) -> x509.Certificate:
        """Return a certificate for a public key: for one purpose, for so many seconds from `now` (unix)."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self.certificate.subject, public_key, now, seconds)
        builder = builder.add_extension(self._as_issuer, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(_NO_AUTHORITY, critical=True)
        builder = builder.add_extension(_LEAF_USAGE, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return builder.sign(self._key, SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: EllipticCurvePublicKey, now: float, seconds: int
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(int(now), UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=moment - timedelta(seconds=min(_CLOCK_SKEW, seconds // 4)),
        not_valid_after=moment + timedelta(seconds=seconds),
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


_NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)
_LEAF_USAGE = _key_usage(ca=False)


def private_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a private key as it is kept."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
