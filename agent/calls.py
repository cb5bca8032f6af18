"""Calls to controllers' mesh ports: channels, and errors in our words."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from overmesh import rpc
from overmesh.agent.state import Identity
from overmesh.errors import CloneError, OvermeshError, RemovedError, UnreachableError
from overmesh.proto import mesh_pb2, mesh_pb2_grpc

CALL_TIMEOUT = 10.0
# A controller may have to see first that nobody else is the node.
_LEAVE_TIMEOUT = 25.0
CONNECT_TIMEOUT = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Left:
    """How a host left. told: a controller took the node out; copy_of: it stays, this was only a copy."""

    told: bool
    copy_of: str = ""


async def part(identity: Identity, host_id: str, instance: str, *, force: bool) -> Left:
    """Leave as the node if this host is it, and else just so.

    Args:
        identity: see `leave`.
        host_id: likewise.
        instance: likewise.
        force: go on though no controller could be told.

    Raises:
        MeshError: none could be, and force was not given.

    """
    try:
        await leave(identity, host_id, instance)
    except CloneError:
        return Left(told=False, copy_of=identity.membership.name)
    except OvermeshError as error:
        if force:
            return Left(told=False)
        raise type(error)(error.cause, "try again later, or leave without telling: --force") from None
    return Left(told=True)


async def leave(identity: Identity, host_id: str, instance: str = "") -> None:
    """Tell a controller that this node leaves.

    Args:
        identity: who leaves.
        host_id: of this machine.
        instance: of the agent that runs on it, or that was quarantined; else empty.

    Raises:
        CloneError: this is only a copy of the host that is the node.
        MeshError: none could be told.

    """
    request = mesh_pb2.LeaveRequest(host_id=host_id, instance=instance)
    with suppress(RemovedError):
        await ask_controllers(
            identity,
            identity.membership.controllers,
            lambda stub: stub.Leave(request, timeout=_LEAVE_TIMEOUT),
        )


async def head(identity: Identity, addresses: Sequence[str]) -> mesh_pb2.HeadReply:
    """Return where the map of this host's network stands now, from the first controller that can know it.

    Raises:
        NotYetError: none of those that answer can ask the store.
        OvermeshError: see `ask_controllers`.

    """
    request = mesh_pb2.HeadRequest()
    return await ask_controllers(identity, addresses, lambda stub: stub.Head(request, timeout=CALL_TIMEOUT))


async def ask_controllers(
    identity: Identity, addresses: Sequence[str], call: Callable[[Any], Awaitable[T]]
) -> T:
    """Return what the first controller that can be asked answers to a call of its mesh port.

    Raises:
        RemovedError: this host is no member any more.
        CloneError: this is only a copy of the host that is the node.
        OvermeshError: what the last one said; asking again may help.

    """
    failure: OvermeshError = UnreachableError("no controller is known")
    for address in addresses:
        try:
            async with channel(identity, address) as open_channel:
                stub: Any = mesh_pb2_grpc.MeshStub(open_channel)  # type: ignore[no-untyped-call]
                return await translated(call(stub), address)
        except (RemovedError, CloneError):
            raise
        except OvermeshError as error:
            failure = error
    raise failure


def channel(identity: Identity, address: str) -> grpc.aio.Channel:
    """Return a channel to a controller's mesh port, for use in a `with`."""
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(*identity.tls_pem),
        options=[
            ("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME),
            # A pool of its own, or a new channel would wait out the backoff of the last one.
            ("grpc.use_local_subchannel_pool", 1),
            # Also how long an attempt to connect may take; 20 s by default.
            ("grpc.min_reconnect_backoff_ms", round(CONNECT_TIMEOUT * 1000)),
            *rpc.KEEPALIVE,
            *rpc.MESSAGE_LIMIT,
        ],
    )


async def translated(call: Awaitable[T], address: str) -> T:
    """Await a call; what gRPC raises comes out in the words of overmesh/errors.py."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise rpc.raised(error, f"controller {address}") from None
    except asyncio.InvalidStateError:  # a write to a stream that has just ended
        raise UnreachableError(f"controller {address} ended the stream") from None


async def opened(identity: Identity, addresses: Sequence[str]) -> tuple[str, grpc.aio.Channel] | None:
    """Return the first of these addresses where somebody answers, with a channel to it."""
    for address in addresses:
        candidate = channel(identity, address)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await candidate.channel_ready()
        except (TimeoutError, asyncio.CancelledError) as error:
            await candidate.close()
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            return address, candidate
    return None
