from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from overmesh import errors, rpc
from overmesh.errors import OvermeshError


def every_error() -> list[type[OvermeshError]]:
    found = [OvermeshError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return found


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A server whose only method raises the error class that it is asked for."""

    async def handle(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        await rpc.abort(context, getattr(errors, request.decode())("the cause", "the fix: schließen"))

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"M": handler}),))
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as client:
        yield client
    await server.stop(None)


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
async def test_an_error_keeps_class_cause_and_fix_on_its_way(
    channel: grpc.aio.Channel, cls: type[OvermeshError]
) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t/M")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(cls.__name__.encode())
    error = rpc.raised(caught.value, "controller")
    assert (type(error), error.cause, error.fix) == (cls, "the cause", "the fix: schließen")


async def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody") as client:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.unary_unary("/t/M")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"")
    error = rpc.raised(caught.value, "controller at x")
    assert isinstance(error, errors.UnreachableError)
    assert error.cause.startswith("controller at x does not answer")


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = errors.__doc__ or ""
    for cls in every_error():
        assert cls.__name__ in drawn
