"""The join token: om2.<id>.<secret>.<pin>, one string that lets one host in.

id names it in `meshctl token list`, secret is what the controller keeps only a hash of, pin is the
mesh root's public key (P-256, compressed; SEC 1, 2.3.3): it authenticates the controller before the
secret is sent. Parts are base64url without padding, the id is hexadecimal.
"""

import base64
import binascii
import re
import secrets
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overmesh.errors import UsageError

VERSION = "om2"
# Its pin was a hash of the root's certificate.
_FORMER = "om1"
ID_LENGTH = 5
SECRET_LENGTH = 24
SEED_LENGTH = ID_LENGTH + SECRET_LENGTH
_ID = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in full: only the user and the joining host ever hold one."""

    id: str
    secret: bytes
    pin: bytes

    @classmethod
    def new(cls, root: EllipticCurvePublicKey) -> Self:
        """Return a fresh token for the mesh with this root."""
        return cls.derived(root, secrets.token_bytes(SEED_LENGTH))

    @classmethod
    def derived(cls, root: EllipticCurvePublicKey, seed: bytes) -> Self:
        """Return the token that follows from so many secret bytes: the same for the same."""
        pin = root.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        return cls(seed[:ID_LENGTH].hex(), seed[ID_LENGTH:SEED_LENGTH], pin)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what the user typed.

        Raises:
            UsageError: not (all of) a token.

        """
        fix = "copy the whole line that `meshctl token create` printed"
        version, *parts = text.strip().split(".")
        if version == _FORMER:
            raise UsageError(
                f"tokens of the form {_FORMER} are no longer taken",
                "make another one: `meshctl token create`",
            )
        if version != VERSION or len(parts) != 3:
            raise UsageError(f"the token is not of the form {VERSION}.<id>.<secret>.<pin>", fix)
        token = cls(parts[0], _decode(parts[1]), _decode(parts[2]))
        if not _ID.fullmatch(token.id) or len(token.secret) != SECRET_LENGTH or not _is_point(token.pin):
            raise UsageError("the token is incomplete or mistyped", fix)
        return token

    @property
    def root(self) -> EllipticCurvePublicKey:
        """The key of the mesh root that it pins."""
        return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), self.pin)

    @property
    def secret_text(self) -> str:
        """The secret as it stands in the token and travels in JoinRequest.token_secret."""
        return _encode(self.secret)

    def __str__(self) -> str:
        return f"{VERSION}.{self.id}.{self.secret_text}.{_encode(self.pin)}"


def _is_point(pin: bytes) -> bool:
    # A point has other encodings as well: only one is a pin, or a mistyped token would be another's equal.
    try:
        point = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), pin)
    except ValueError:
        return False
    return point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint) == pin


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
    # Unused bits in the last character would let a mistyped token pass for the right one.
    return data if _encode(data) == text else b""
