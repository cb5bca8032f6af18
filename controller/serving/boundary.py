"""What every call goes through: on whose behalf, how it ended, how long it took.

gRPC ──► Boundary: caller, problems, span ──► service ──► reply, or an error of ours by name, or no details
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from overmesh import rpc, trace
from overmesh.controller.serving import caller
from overmesh.errors import OvermeshError
from overmesh.model import Problem

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any, Context], Awaitable[T]]
# Takes the method's name and "ok" or the name of what was raised.
Answered = Callable[[str, str], None]
# Returns what the caller should know of whatever it will be answered.
Begin = Callable[[], Awaitable[Sequence[Problem]]]

_log = logging.getLogger("overmesh.controller")


class Boundary(grpc.aio.ServerInterceptor):
    """Turns what our services raise into a status: ours by name, anything else without details.

    Args:
        answered: is told of every call that has ended.
        begin: comes first in each call.

    """

    def __init__(self, answered: Answered, begin: Begin | None = None) -> None:
        self._answered = answered
        self._begin = begin

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handlers of our own services; health and reflection look after themselves."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/overmesh."):
            return handler
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        guarded = partial(self._guarded, handler_call_details.method)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(guarded(handler.stream_stream), **coding)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(guarded(handler.unary_stream), **coding)
        spanned = _spanned(handler_call_details.method, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(guarded(spanned), **coding)

    def _guarded(self, method: str, call: Call[T]) -> Call[T]:
        async def guarded(request: Any, context: Context) -> T:
            result = "ok"
            try:
                caller.enter(method, context)
                if self._begin:
                    context.set_trailing_metadata(rpc.telling(await self._begin()))
                return await call(request, context)
            except OvermeshError as error:
                result = type(error).__name__
                await rpc.abort(context, error)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                result = "cancelled"
                raise
            except Exception:
                result = "unexpected"
                _log.exception("unexpected error in a call")
                await context.abort(
                    grpc.StatusCode.INTERNAL, "unexpected error; the controller's log says more"
                )
            finally:
                self._answered(method.rpartition("/")[2], result)

        return guarded


def _spanned(method: str, call: Call[T]) -> Call[T]:
    async def spanned(request: Any, context: Context) -> T:
        with trace.span(method, trace.parent_in(dict(context.invocation_metadata() or ()))):
            return await call(request, context)

    return spanned
