"""What both ends of every gRPC connection share: settings, and errors that keep their class."""

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import grpc
import grpc.aio

from overmesh import errors
from overmesh.errors import OvermeshError
from overmesh.model import Problem

# Name that every controller certificate carries, whatever host it runs on: the Python API has no
# hook to verify names, so clients override the expected one with this.
CONTROLLER_NAME = "controller.overmesh"

# Metadata of meshctl's calls: an id that a repetition of the call has too, and who it says is typing.
REQUEST_ID = "overmesh-request"
OPERATOR = "overmesh-operator"
_REQUEST_ID = re.compile(r"[0-9a-f]{24}")
# Metadata of the answer: what is wrong with it as a whole, once for each such thing.
_PROBLEM = "overmesh-problem-bin"

# The ping timeout is its own setting: without it a frozen peer is noticed after a minute, not
# after keepalive_timeout_ms (measured, gRPC 1.85).
KEEPALIVE: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
MESSAGE_LIMIT: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
]

# To a fastpath's unix socket: gRPC would send the socket's path as the authority, which Rust's h2 refuses.
TO_FASTPATH: list[tuple[str, Any]] = [("grpc.default_authority", "localhost")]

# What BoringSSL says of a peer's certificate, in the midst of gRPC's words.
_MISTRUST = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([\w ,'-]+)")

_STATUS = {
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TokenError: grpc.StatusCode.UNAUTHENTICATED,
    errors.RemovedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.CloneError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.NameTakenError: grpc.StatusCode.ALREADY_EXISTS,
    errors.PoolExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.UnreachableError: grpc.StatusCode.UNAVAILABLE,
}

# CANCELLED too: a server past its limit of pending requests ends calls that way.
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def request_id(now: float | None = None) -> str:
    """Return a new id for a request: the time (unix seconds) to the millisecond, then random bits, in hex."""
    return f"{int((time.time() if now is None else now) * 1000):012x}{secrets.token_hex(6)}"


def is_request_id(text: str) -> bool:
    """Tell whether a text is one."""
    return _REQUEST_ID.fullmatch(text) is not None


def status_of(error: OvermeshError) -> grpc.StatusCode:
    """Return the gRPC status under which an error travels."""
    for cls in type(error).__mro__:
        if cls in _STATUS:
            return _STATUS[cls]
    return grpc.StatusCode.FAILED_PRECONDITION


def telling(problems: Iterable[Problem]) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata by which an answer of any kind says what is wrong with it (`told`)."""
    lines = (f"{problem.subject}: {problem.reason}" for problem in problems)
    return tuple((_PROBLEM, line.encode()) for line in lines)


def told(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[str]:
    """Yield what an answer's trailing metadata says is wrong with it, for people."""
    for key, value in metadata:
        if key == _PROBLEM and isinstance(value, bytes):
            yield value.decode(errors="replace")


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: OvermeshError) -> NoReturn:
    """End a call with the error, so that the caller can raise the same class (see `raised`)."""
    await context.abort(
        status_of(error),
        error.cause,
        (("overmesh-error", type(error).__name__), ("overmesh-fix-bin", error.fix.encode())),
    )


def raised(error: grpc.aio.AioRpcError, peer: str) -> OvermeshError:
    """Translate what a gRPC call raised into the tree of overmesh/errors.py.

    Args:
        error: from the call.
        peer: what was being talked to, for the message ("controller at 192.0.2.1:7443").

    """
    metadata = {str(key): value for key, value in (error.trailing_metadata() or ())}
    cls = getattr(errors, str(metadata.get("overmesh-error", "")), None)
    if isinstance(cls, type) and issubclass(cls, OvermeshError):
        fix = metadata.get("overmesh-fix-bin", b"")
        return cls(error.details() or "", fix.decode() if isinstance(fix, bytes) else fix)
    if mistrust := _MISTRUST.search(error.details() or ""):
        clocks = re.search("expired|not yet valid", mistrust[1])
        return errors.UnreachableError(
            f"the certificate of {peer} is not accepted: {mistrust[1]}",
            "compare the clocks of both hosts" if clocks else "check that the address is right",
        )
    if error.code() in _NO_ANSWER:
        return errors.UnreachableError(
            f"{peer} does not answer: {_last_cause(error.details())}",
            "check that it runs and that the address is right",
        )
    return errors.MeshError(f"{peer} failed: {error.code().name} {error.details()}")


def _last_cause(details: str | None) -> str:
    """Return the end of gRPC's "failed to connect to all addresses; last error: …: Connection refused"."""
    return (details or "").rpartition(": ")[2]
