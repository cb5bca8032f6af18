"""etcd's errors, and gRPC's on the way there, as the store's. Seen of etcd 3.4."""

import re

import grpc
import grpc.aio

from overmesh.errors import (
    CompactedError,
    FutureRevisionError,
    LeaseNotFoundError,
    StoreError,
    StoreUnavailableError,
    UnconfirmedError,
)

_Code = grpc.StatusCode
_PASSING = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED, _Code.UNKNOWN, _Code.INTERNAL}
_REFUSALS = {_Code.PERMISSION_DENIED, _Code.UNAUTHENTICATED}
# Said before anything is done: by a member that knows of no leader, or has too much to do.
_NOT_BEGUN = ("etcdserver: no leader", "etcdserver: too many requests")
# Words of gRPC 1.85 when TLS fails; what that means; what to do.
_TLS_FAILURES = (
    (
        "CERTIFICATE_VERIFY_FAILED: certificate has expired",
        "shows a certificate that has expired",
        "renew it, or compare the clocks of both hosts",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "shows a certificate that is not signed by the given CA",
        "name in ca= the CA that signed its certificate",
    ),
    (
        "Hostname Verification Check failed",
        "shows a certificate for another name",
        "use a name that is in the certificate",
    ),
    (
        # TLS 1.3 is up for us by the time that the other end has looked for our certificate and says no.
        "TSI_DATA_CORRUPTED",
        "wants a certificate of ours, signed by its --trusted-ca-file",
        "name such a one and its key: ?ca=FILE&cert=FILE&key=FILE",
    ),
    (
        "Handshake read failed (Socket closed)",
        "speaks no TLS",
        "leave ca=, cert= and key= out, or name the address where it does",
    ),
)


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether another member, or this one later, may answer the same request otherwise."""
    return error.code() in _PASSING or was_not_begun(error)


def was_not_begun(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the request was turned away before it had any effect."""
    return (error.details() or "").startswith(_NOT_BEGUN)


def explained(error: grpc.aio.AioRpcError, where: str) -> StoreError:
    """Return the store's error for a refusal; CompactedError without `oldest`, which etcd does not say."""
    code, details = error.code(), error.details() or ""
    if code is _Code.OUT_OF_RANGE:
        kind = FutureRevisionError if "future revision" in details else CompactedError
        return kind(f"etcd: {_plain(details)}")
    if code is _Code.NOT_FOUND and "lease" in details:
        return LeaseNotFoundError("the lease has expired", "ask for a new one")
    if code in _REFUSALS or "user name is empty" in details:
        return refused(where, details)
    if "space exceeded" in details:
        fix = "compact and defragment it, then `etcdctl alarm disarm`"
        return StoreUnavailableError(f"{where} has no space left: {_plain(details)}", fix)
    return StoreUnavailableError(f"{where} refuses: {code.name} {_plain(details)}".rstrip())


def refused(where: str, details: str) -> StoreUnavailableError:
    """Return the error for an etcd that does not let us."""
    fix = "grant its user (the certificate's common name) a role with readwrite on the prefix"
    return StoreUnavailableError(f"{where} refuses: {_plain(details)}", fix)


def unreachable(where: str, details: str) -> StoreUnavailableError:
    """Return the error for an etcd that can't be connected to.

    Args:
        where: its URL.
        details: gRPC's; names each address and the reason.

    """
    for words, cause, fix in _TLS_FAILURES:
        if words in details:
            return StoreUnavailableError(f"{where} {cause}", fix)
    fix = "see that etcd runs there, and whether it wants TLS (?ca=FILE&cert=FILE&key=FILE)"
    return StoreUnavailableError(f"{where} can't be reached: {_plain(details)}", fix)


def unconfirmed(where: str, endpoint: str, error: grpc.aio.AioRpcError) -> UnconfirmedError:
    """Return the error for a change that was sent, and not answered."""
    cause = f"{where} did not confirm a change ({endpoint}: {_plain(error.details() or '')})"
    return UnconfirmedError(f"{cause}; it may or may not have happened", "look, then try again")


def unanswered(where: str, endpoint: str, error: grpc.aio.AioRpcError) -> StoreUnavailableError:
    """Return the error for a request that no member has carried out."""
    cause = f"{where} does not answer ({endpoint}: {_plain(error.details() or '')})"
    return StoreUnavailableError(cause, "see `etcdctl endpoint status`: most of its members have to be up")


def _plain(details: str) -> str:
    """Return what an error message says in the end: one short line."""
    last = re.split(r"last error: (?:UNKNOWN|UNAVAILABLE): |desc = |etcdserver: ", details)[-1]
    return " ".join(last.split())[:200] or "no answer"
