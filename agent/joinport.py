"""A controller's join port: where it is, a connection to it that is verified, and why there is none.

A host that wants to join knows of the mesh root no more than its key. That is enough for TLS. What a port
shows without being trusted is only looked at to say what is wrong.
"""

import asyncio
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Self

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from overmesh import rpc
from overmesh.config import JOIN_PORT
from overmesh.errors import OvermeshError, PinMismatchError, UnreachableError, UsageError
from overmesh.proto.roots import ROOT_NAME, Roots

REACH_TIMEOUT = 10.0

_FILTERED = "check the address, the controller and what filters packets in between"


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


def channel(target: Target, roots: Roots) -> grpc.aio.Channel:
    """Return a channel to a join port, for use in a `with`; who is there has to be of one of these roots."""
    return grpc.aio.secure_channel(
        str(target),
        grpc.ssl_channel_credentials(roots.pem),
        options=[
            ("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME),
            # A pool of its own, or a new channel would wait out the backoff of the last one.
            ("grpc.use_local_subchannel_pool", 1),
            # For a host that waits hours for an operator; two minutes by default.
            ("grpc.max_reconnect_backoff_ms", 2_000),
            *rpc.KEEPALIVE,
        ],
    )


@asynccontextmanager
async def connected(target: Target, root: EllipticCurvePublicKey) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel that is connected, and verified against the mesh root with this key.

    Raises:
        UnreachableError: nobody answers there, or not a controller, or the clocks are too far apart.
        PinMismatchError: whoever answers does not hold that root.

    """
    async with channel(target, Roots((_anchor(root),))) as opened:
        try:
            async with asyncio.timeout(REACH_TIMEOUT):
                ready = await _is_ready(opened)
        except TimeoutError:
            raise _no_answer(target) from None
        if not ready:
            raise await _why_not(target, root)
        yield opened


def _anchor(root: EllipticCurvePublicKey) -> x509.Certificate:
    """Return a certificate by which TLS trusts what a root has issued, made of no more than its key.

    What counts of a trust anchor is its name and its key (RFC 5280, 6.1.1 d): this one's signature is by a
    key that nobody has any more, and is not looked at.
    """
    return (
        x509.CertificateBuilder(ROOT_NAME, ROOT_NAME, root, x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root), critical=False)
        .sign(generate_private_key(SECP256R1()), SHA256())
    )


async def _is_ready(opened: grpc.aio.Channel) -> bool:
    """Tell, once it has come to either, whether a connection is there or none can be had."""
    ends = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
    while (state := opened.get_state(try_to_connect=True)) not in ends:
        await opened.wait_for_state_change(state)
    return state is grpc.ChannelConnectivity.READY


# When it does not come about.


async def _why_not(target: Target, root: EllipticCurvePublicKey) -> OvermeshError:
    """Return why whoever is there is not trusted, as far as what it shows tells.

    Raises:
        UnreachableError: nobody is there, or not a controller, or the clocks are too far apart.

    """
    chain = await unverified_chain(target)
    if not any(_is_of(one, root) for one in chain[1:]):
        return PinMismatchError(
            f"{target} does not hold the mesh root that the token pins",
            "check that the token is from this controller, and from after the last rotation of its root; "
            "if it is, somebody answers in its place",
        )
    check_clock(chain[0], target, time.time())
    return PinMismatchError(
        f"{target} shows the mesh root that the token pins, but holds no controller's certificate of it",
        "run the same line again if it has just been started; else somebody answers in its place",
    )


def _is_of(certificate: x509.Certificate, key: EllipticCurvePublicKey) -> bool:
    try:
        return Roots((certificate,)).keys == (key,)
    except ValueError:
        return False


def _no_answer(target: Target) -> UnreachableError:
    return UnreachableError(f"{target} does not answer within {REACH_TIMEOUT:.0f} s", _FILTERED)


async def unverified_chain(target: Target) -> list[x509.Certificate]:
    """Return the certificates that a TLS server shows, its own first.

    Raises:
        UnreachableError: nobody is there, no TLS is spoken, or no certificate can be read.

    """
    try:
        async with asyncio.timeout(REACH_TIMEOUT):
            writer = await _opened(target)
            chain = await _shown(writer)
        certificates = [x509.load_der_x509_certificate(one) for one in chain]
    except TimeoutError:
        raise _no_answer(target) from None
    except (OSError, ValueError):
        certificates = []
    if not certificates:
        raise UnreachableError(
            f"{target} does not speak TLS", f"name the join port of the controller ({JOIN_PORT} by default)"
        )
    return certificates


async def _opened(target: Target) -> asyncio.StreamWriter:
    try:
        return (await asyncio.open_connection(target.host, target.port))[1]
    except socket.gaierror:
        raise UnreachableError(
            f"the name {target.host} is not known", "check the name, or use an address"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{target} can't be reached: {os.strerror(error.errno or 0)}", _FILTERED
        ) from None


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
