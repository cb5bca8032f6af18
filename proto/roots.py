"""Which certificates are trusted as mesh root, and how that changes: by what a trusted one has signed.

    a root signs RootRecord(next)             the next one is trusted too
    the next signs RootRecord(root, retired)  the next one alone is trusted

A value without I/O: the same rules for agents, for controllers, and for a host that comes back after
years and holds a root that has long been retired.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurveSignatureAlgorithm,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from overmesh.errors import RecordError
from overmesh.model import Root, root_key
from overmesh.proto.signed import read, verify

# The subject of every mesh root: who knows a root's key alone can make an anchor for TLS of both.
ROOT_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "overmesh root")])


@dataclass(frozen=True)
class Roots:
    """The trusted certificates, in the order in which they came to be trusted; the last one is the newest.

    Raises:
        ValueError: none at all, or one whose key is not ECDSA P-256.

    """

    certificates: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("no mesh root")

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read certificates in PEM, one after the other; ValueError for anything else."""
        return cls(tuple(x509.load_pem_x509_certificates(pem)))

    @property
    def pem(self) -> bytes:
        """The certificates in PEM, as TLS takes them and as they are kept."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.certificates)

    @cached_property
    def keys(self) -> tuple[EllipticCurvePublicKey, ...]:
        """The public key of each."""
        return tuple(map(_key, self.certificates))

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """SHA-256 of each certificate, in hex."""
        return tuple(map(fingerprint, self.certificates))

    def verify(self, signature: bytes, data: bytes, algorithm: EllipticCurveSignatureAlgorithm) -> None:
        """Raise InvalidSignature unless one of them signed the data, as a public key's `verify` does."""
        # The newest first: it has signed nearly everything.
        for key in reversed(self.keys):
            try:
                return key.verify(signature, data, algorithm)
            except InvalidSignature:
                continue
        raise InvalidSignature

    def issuer(self, certificate: x509.Certificate) -> str:
        """Return the fingerprint of the one that issued a certificate; empty when none did."""
        for root, name in zip(self.certificates, self.fingerprints, strict=True):
            try:
                certificate.verify_directly_issued_by(root)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return name
        return ""

    def signer(self, key: str, signed: bytes) -> str:
        """Return the fingerprint of the one that signed a record for a peer map key; empty when none did."""
        for root, name in zip(self.keys, self.fingerprints, strict=True):
            try:
                verify(key, signed, root)
            except RecordError:
                continue
            return name
        return ""

    def following(self, records: Iterable[tuple[str, bytes]]) -> Self:
        """Return what is trusted once these have been read: peer map key and encoded Signed of each.

        In any order, with strangers' and old ones among them: what none of the trusted has signed is passed
        over, and so is whatever would bring back one that was retired on the way.
        """
        roots, records = self, list(records)
        retired: set[str] = set()
        while (after := roots._step(records, retired)) is not None:
            roots = after
        return roots

    def _step(self, records: Iterable[tuple[str, bytes]], retired: set[str]) -> Self | None:
        """Return what is trusted after one more of these records; None when none of them changes it.

        `retired` takes in the fingerprint of a root that goes.
        """
        for key, signed in records:
            signer = self.signer(key, signed)
            record = read(key, signed) if signer else None
            if not isinstance(record, Root):
                continue
            by = self.fingerprints.index(signer)
            if record.retired and record.fingerprint in self.fingerprints[:by]:
                retired.add(record.fingerprint)
                return type(self)((self.certificates[by],))
            known = record.retired or record.fingerprint in {*self.fingerprints, *retired}
            certificate = None if known else _certificate(record)
            if certificate:
                return type(self)((*self.certificates, certificate))
        return None


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate (DER), in hex."""
    return certificate.fingerprint(SHA256()).hex()


def is_root_key(key: str) -> bool:
    """Tell whether a peer map key is that of a mesh root."""
    return key.startswith(root_key(""))


def _certificate(record: Root) -> x509.Certificate | None:
    try:
        certificate = x509.load_der_x509_certificate(record.certificate)
        _key(certificate)
    except ValueError:
        return None
    return certificate


def _key(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise ValueError("the mesh root's key is not ECDSA P-256")
