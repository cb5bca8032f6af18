"""The two unix sockets that meshctl asks: the controller's and the agent's of this host.

Heavy to import (gRPC): verbs import it when they run, not before.
"""

import asyncio
import functools
import os
import pwd
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from overmesh import rpc
from overmesh.cli import output
from overmesh.config import AgentConfig, ControllerConfig
from overmesh.errors import (
    OvermeshError,
    PermissionMissingError,
    StoreUnavailableError,
    UnconfirmedError,
    UnreachableError,
)
from overmesh.proto import admin_pb2_grpc, agent_pb2_grpc

# Local calls answer at once or not at all; what waits by its nature brings its own limit.
CALL_TIMEOUT = 10.0
# Seconds until a call whose answer was lost is made again.
_PAUSE = 0.5

T = TypeVar("T")
Stub = Any  # generated gRPC stubs carry no types


def ask_controller(
    config: ControllerConfig, call: Callable[[Stub], Awaitable[Any]], *, shown_by: str = ""
) -> Any:
    """Return what one call to the admin service of this host's controller answers.

    When the answer is lost, or the store away for a moment, it is asked again, as the same request: what
    the first one did is not done twice.

    Args:
        config: settings of the controller of this host.
        call: asks its stub.
        shown_by: for a change: the command that shows whether it was made.

    Raises:
        UnreachableError: no controller runs here.
        PermissionMissingError: its socket is not for this user.
        UnconfirmedError: a change that may or may not have been made.
        OvermeshError: what the controller said.

    """
    return run(_persisted(config, call, shown_by))


async def _persisted(config: ControllerConfig, call: Callable[[Stub], Awaitable[Any]], shown_by: str) -> Any:
    request, until = rpc.request_id(), time.monotonic() + CALL_TIMEOUT
    fate, sent = _Fate.NOT_SENT, False

    async def send(stub: Stub) -> Any:
        nonlocal sent
        sent = True
        return await call(stub)

    while True:
        sent = False
        try:
            return await ask(controller(config, request), send, until - time.monotonic())
        except (StoreUnavailableError, UnreachableError) as error:
            fate = max(fate, _fate(error, sent=sent))
            if fate is _Fate.NOT_SENT or time.monotonic() + _PAUSE >= until:
                raise (_unconfirmed(error, shown_by) if fate is _Fate.OPEN and shown_by else error) from None
        await asyncio.sleep(_PAUSE)


class _Fate(IntEnum):
    """What has become of a request; of several attempts the greatest counts."""

    NOT_SENT = 0  # no controller runs here, or it is not for this user: asking again does not help
    NOT_DONE = 1  # the controller says so
    OPEN = 2  # nobody can say, now or in a moment


def _fate(error: OvermeshError, *, sent: bool) -> _Fate:
    if not sent:
        return _Fate.NOT_SENT
    answered = isinstance(error, StoreUnavailableError) and not isinstance(error, UnconfirmedError)
    return _Fate.NOT_DONE if answered else _Fate.OPEN


def _unconfirmed(last: OvermeshError, shown_by: str) -> UnconfirmedError:
    """Return what a change ends with of which one attempt, not always the last, may have been carried out."""
    doubt = "" if isinstance(last, UnconfirmedError) else "; it may or may not have happened"
    return UnconfirmedError(last.cause + doubt, f"see `{shown_by}` before you try again")


def ask_agent(
    config: AgentConfig, call: Callable[[Stub], Awaitable[Any]], timeout: float = CALL_TIMEOUT
) -> Any:
    """Return what one call to this host's agent answers within so many seconds; errors as above."""
    return run(ask(agent(config), call, timeout))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run what a verb does on these sockets."""
    return asyncio.run(main)


async def ask(
    opened: AbstractAsyncContextManager[Stub],
    call: Callable[[Stub], Awaitable[Any]],
    timeout: float = CALL_TIMEOUT,
) -> Any:
    """Return what one call answers within so many seconds; `opened` is `controller` or `agent`."""
    async with opened as stub, asyncio.timeout(timeout):
        return await call(stub)


@asynccontextmanager
async def controller(config: ControllerConfig, request: str = "") -> AsyncIterator[Stub]:
    """Give the stub of the admin service; errors inside the block come out as OvermeshErrors.

    Args:
        config: settings of the controller of this host.
        request: an id under which the controller knows the call when it comes again.

    """
    absent = UnreachableError(
        "no controller runs on this host",
        "run this on the controller's host as root, or start one: meshctl controller run",
    )
    async with _channel(config.socket, "the controller of this host", absent) as channel:
        metadata = ((rpc.REQUEST_ID, request or rpc.request_id()), (rpc.OPERATOR, _operator()))
        yield _Saying(admin_pb2_grpc.AdminStub(channel), metadata)  # type: ignore[no-untyped-call]


class _Saying:
    """A stub whose every call carries the same metadata, and shows what its answer says is wrong with it."""

    def __init__(self, stub: Stub, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        call = functools.partial(method, metadata=self._metadata)
        streams = not isinstance(method, grpc.aio.UnaryUnaryMultiCallable)
        return call if streams else functools.partial(_answer, call)


async def _answer(call: Callable[..., Any], request: Any, **options: Any) -> Any:
    asked = call(request, **options)
    reply = await asked
    for problem in rpc.told(await asked.trailing_metadata()):
        output.warn(problem)
    return reply


def _operator() -> str:
    """Return who is typing, for the audit: before sudo, if that is known."""
    try:
        name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid-{os.getuid()}"
    return re.sub(r"[^\w.@-]", "_", name, flags=re.ASCII)[:64]


@asynccontextmanager
async def agent(config: AgentConfig) -> AsyncIterator[Stub]:
    """Give the stub of this host's agent; errors inside the block come out as OvermeshErrors."""
    absent = UnreachableError(
        "the agent does not run on this host",
        "start it: systemctl start overmesh-agent, or meshctl agent run; "
        "if the host has not joined yet: meshctl join",
    )
    async with _channel(config.socket, "the agent of this host", absent) as channel:
        yield agent_pb2_grpc.AgentStub(channel)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def _channel(path: Path, who: str, absent: UnreachableError) -> AsyncIterator[grpc.aio.Channel]:
    target = _target(path, absent)
    async with grpc.aio.insecure_channel(target, options=rpc.MESSAGE_LIMIT) as channel:
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            raise rpc.raised(error, who) from None
        except TimeoutError:
            raise UnreachableError(f"{who} does not answer", "look at its log, restart it") from None


def _target(path: Path, absent: UnreachableError) -> str:
    """Return a socket as gRPC names it; if it can't be used say why: gRPC would only say "unavailable"."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        try:
            knock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise absent from None
        except PermissionError:
            raise PermissionMissingError(
                f"{path} is only for root", "use sudo, or run this as root"
            ) from None
        except OSError as error:
            raise UnreachableError(f"{path} can't be used: {error.strerror or error}") from None
    return f"unix:{path.absolute()}"
