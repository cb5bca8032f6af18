"""A change of this host's keys that is under way, as it is kept on disk between its steps."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from overmesh.agent import keyfiles
from overmesh.files import as_bytes, as_text


class Stage(StrEnum):
    """How far a change is: what the last step was."""

    PREPARED = "prepared"
    ANNOUNCED = "announced"
    SWITCHED = "switched"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """The new keys, and how far the change to them is.

    grace: for how many seconds the old keys are to be good besides. until: when that is over (unix
    seconds), once others know of it. certificate: of the new TLS key, until both are in their own files.
    """

    noise: X25519PrivateKey = field(repr=False)
    tls: EllipticCurvePrivateKey = field(repr=False)
    grace: int
    stage: Stage = Stage.PREPARED
    until: float = 0
    certificate: x509.Certificate | None = None

    @classmethod
    def begin(cls, grace: int) -> Self:
        """Return a change to fresh keys."""
        return cls(X25519PrivateKey.generate(), generate_private_key(SECP256R1()), grace)

    @property
    def public(self) -> bytes:
        """The 32 bytes by which others are to know this host."""
        return self.noise.public_key().public_bytes_raw()

    def encode(self) -> bytes:
        """Return the change as it is kept."""
        der = self.certificate.public_bytes(Encoding.DER) if self.certificate else b""
        fields = {
            "noise": keyfiles.noise_text(self.noise).decode(),
            "tls": keyfiles.tls_text(self.tls).decode(),
            "grace": self.grace,
            "stage": self.stage,
            "until": self.until,
            "certificate": as_text(der),
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` wrote; ValueError, KeyError, TypeError or AttributeError when it did not."""
        fields = json.loads(data)
        der = as_bytes(fields["certificate"])
        return cls(
            noise=keyfiles.noise_key(fields["noise"].encode()),
            tls=keyfiles.tls_key(fields["tls"].encode()),
            grace=int(fields["grace"]),
            stage=Stage(fields["stage"]),
            until=float(fields["until"]),
            certificate=x509.load_der_x509_certificate(der) if der else None,
        )
