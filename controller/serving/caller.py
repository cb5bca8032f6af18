"""On whose behalf something is done, from the gRPC call to whatever it changes, without handing it along.

Who asks is known as far as the connection tells it: a node by its certificate, a joining host by its
token, an operator by nothing but that the unix socket is root's alone. gRPC does not pass on the
socket's peer credentials, so an operator's name is what meshctl says it is.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from overmesh import rpc
from overmesh.controller.trust import Identity
from overmesh.errors import InvalidError

_NAME = re.compile(r"[\w.@\\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from where.

    request: an id that a repetition of the same request has too; empty when it has none.
    changes: counts what is changed on its behalf.
    """

    who: str = "controller"
    origin: str = ""
    request: str = ""
    changes: Iterator[int] = field(default_factory=itertools.count, compare=False)


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """Return on whose behalf this task acts; a background duty acts on the controller's own."""
    return _CALLER.get() or Caller()


def enter(method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
    """Have the rest of this task act on behalf of who makes a call.

    Args:
        method: full name, such as "/overmesh.admin.v1.Admin/RemoveNode".
        context: of the call.

    Raises:
        InvalidError: a request id that can't be one.

    """
    _CALLER.set(_caller(method, context))


def _caller(method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
    origin = address(context.peer())
    if method.startswith("/overmesh.controllers."):
        return Caller("another controller", origin)
    if not method.startswith("/overmesh.admin."):
        uris = context.auth_context().get("peer_uri")
        return Caller(f"node {Identity.of_caller({'peer_uri': uris}).node_id}" if uris else "host", origin)
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    request = str(metadata.get(rpc.REQUEST_ID, ""))
    if request and not rpc.is_request_id(request):
        raise InvalidError(f"{request!r} is not a request id", "send what overmesh.rpc.request_id returns")
    return Caller(_operator(metadata), origin, request)


def _operator(metadata: Mapping[str, object]) -> str:
    name = str(metadata.get(rpc.OPERATOR, ""))
    return f"operator {name}" if _NAME.fullmatch(name) else "operator"


def address(peer: str) -> str:
    """Return where a call comes from: gRPC's "ipv4:192.0.2.7:53412" without scheme and port."""
    scheme, _, place = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return "this host" if scheme == "unix" else peer
    host = place.rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]")
