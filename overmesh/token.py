"""The join token: om1.<id>.<secret>.<pin>, one string that lets one host in.

id names it in `meshctl token list`, secret is what the controller keeps only a hash of, pin is the
SHA-256 of the mesh root's certificate (DER): it authenticates the controller before the secret is
sent. Parts are base64url without padding, the id is hexadecimal.
"""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Self

from overmesh.errors import UsageError

VERSION = "om1"
ID_LENGTH = 5
SECRET_LENGTH = 24
SEED_LENGTH = ID_LENGTH + SECRET_LENGTH
PIN_LENGTH = hashlib.sha256().digest_size
_ID = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in full: only the user and the joining host ever hold one."""

    id: str
    secret: bytes
    pin: bytes

    @classmethod
    def new(cls, root_der: bytes) -> Self:
        """Return a fresh token for the mesh with this root certificate (DER)."""
        return cls.derived(root_der, secrets.token_bytes(SEED_LENGTH))

    @classmethod
    def derived(cls, root_der: bytes, seed: bytes) -> Self:
        """Return the token that follows from so many secret bytes: the same for the same."""
        secret = seed[ID_LENGTH:SEED_LENGTH]
        return cls(seed[:ID_LENGTH].hex(), secret, root_pin(root_der))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what the user typed.

        Raises:
            UsageError: not (all of) a token.

        """
        fix = "copy the whole line that `meshctl token create` printed"
        version, *parts = text.strip().split(".")
        if version != VERSION or len(parts) != 3:
            raise UsageError(f"the token is not of the form {VERSION}.<id>.<secret>.<pin>", fix)
        secret, pin = _decode(parts[1]), _decode(parts[2])
        if not _ID.fullmatch(parts[0]) or len(secret) != SECRET_LENGTH or len(pin) != PIN_LENGTH:
            raise UsageError("the token is incomplete or mistyped", fix)
        return cls(parts[0], secret, pin)

    @property
    def secret_text(self) -> str:
        """The secret as it stands in the token and travels in JoinRequest.token_secret."""
        return _encode(self.secret)

    def __str__(self) -> str:
        return f"{VERSION}.{self.id}.{self.secret_text}.{_encode(self.pin)}"


def root_pin(root_der: bytes) -> bytes:
    """Return the pin of a root certificate (DER)."""
    return hashlib.sha256(root_der).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
    # Unused bits in the last character would let a mistyped token pass for the right one.
    return data if _encode(data) == text else b""
