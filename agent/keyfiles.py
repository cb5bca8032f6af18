"""How private keys are written: what is in tls.key and noise.key, and in keychange.json while they change."""

import base64

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


def tls_text(key: EllipticCurvePrivateKey) -> bytes:
    """Return a TLS key in PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def tls_key(data: bytes) -> EllipticCurvePrivateKey:
    """Read what `tls_text` wrote; ValueError or TypeError when it did not."""
    key = load_pem_private_key(data, None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise TypeError("not an ECDSA key")
    return key


def noise_text(key: X25519PrivateKey) -> bytes:
    """Return an X25519 key in base64, as WireGuard writes them."""
    return base64.b64encode(key.private_bytes_raw()) + b"\n"


def noise_key(data: bytes) -> X25519PrivateKey:
    """Read what `noise_text` wrote; ValueError when it did not."""
    return X25519PrivateKey.from_private_bytes(base64.b64decode(data.strip(), validate=True))
