"""A controller's join port as a host sees it that does not trust it yet: where it is, and what it shows.

Nothing that is read here is believed: it says which certificate to compare with a pin, and how far apart
the clocks are.
"""

import asyncio
import re
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from overmesh.config import JOIN_PORT
from overmesh.errors import UnreachableError, UsageError

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A join port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host`, `host:port`, `address`, `[address]` or `[address]:port`.

        Raises:
            UsageError: none of these.

        """
        with suppress(ValueError):
            return cls(str(ip_address(text)), JOIN_PORT)
        found = re.fullmatch(
            r"\[(?P<v6>[0-9a-fA-F:.%]+)\](:(?P<p6>\d+))?|(?P<host>[^:/\s\[\]]+)(:(?P<port>\d+))?", text
        )
        port = int((found and (found["port"] or found["p6"])) or JOIN_PORT)
        if not found or not 0 < port < 1 << 16:
            raise UsageError(f"{text!r} is not a controller", "write HOST, HOST:PORT or [IPv6]:PORT")
        return cls(found["host"] or found["v6"], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def unverified_chain(
    target: Target, opened: asyncio.StreamWriter | None = None
) -> list[x509.Certificate]:
    """Return the certificates that a TLS server shows, its own first.

    Args:
        target: where it is.
        opened: a connection to it on which nothing was said yet; None: one is made. It is closed.

    Raises:
        UnreachableError: no TLS is spoken there, or no certificate can be read.

    """
    try:
        async with asyncio.timeout(_TIMEOUT):
            writer = opened or (await asyncio.open_connection(target.host, target.port))[1]
            chain = await _shown(writer)
        certificates = [x509.load_der_x509_certificate(one) for one in chain]
    except (OSError, ValueError):
        certificates = []
    if not certificates:
        raise UnreachableError(
            f"{target} does not speak TLS", f"name the join port of the controller ({JOIN_PORT} by default)"
        )
    return certificates


async def _shown(writer: asyncio.StreamWriter) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # gRPC servers refuse a client without it
    try:
        await writer.start_tls(context)
        secure = writer.get_extra_info("ssl_object")
        if sys.version_info >= (3, 13):
            return secure.get_unverified_chain()
        # The same function before it was made public.
        inner: Any = secure._sslobj
        return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in inner.get_unverified_chain()]
    finally:
        writer.transport.abort()


def check_clock(certificate: x509.Certificate, target: Target, now: float) -> None:
    """Raise UnreachableError when a controller's certificate is not good at `now` (unix seconds).

    It lives shortly and is always fresh, so then a clock is wrong.
    """
    moment = datetime.fromtimestamp(now, UTC)
    fix = "set the clocks: `timedatectl` shows whether this host's is kept right"
    if moment < certificate.not_valid_before_utc:
        behind = _span(certificate.not_valid_before_utc.timestamp() - now)
        raise UnreachableError(
            f"the certificate of {target} is not yet valid: this host's clock is behind by {behind} or more",
            fix,
        )
    if moment > certificate.not_valid_after_utc:
        ahead = _span(now - certificate.not_valid_after_utc.timestamp())
        raise UnreachableError(
            f"the certificate of {target} has run out: this host's clock is ahead by {ahead} or more, "
            "or the controller's is behind",
            fix,
        )


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def certificate_request(key: EllipticCurvePrivateKey, name: str) -> bytes:
    """Return a PKCS#10 request (DER) that proves to hold the key; the name in it is for people."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)
