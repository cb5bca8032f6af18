"""Leaving on a host whose agent does not run: what the agent would do (daemon.py), in its place."""

import grpc.aio

from overmesh import rpc
from overmesh.agent.calls import Left, part
from overmesh.agent.fastpath import CALL_TIMEOUT, answers
from overmesh.agent.netlink import Netlink
from overmesh.agent.preflight import host_id
from overmesh.agent.state import Identity, StateDir
from overmesh.config import AgentConfig
from overmesh.errors import NotJoinedError, OvermeshError
from overmesh.proto import fastpath_pb2, fastpath_pb2_grpc


async def leave(config: AgentConfig, *, force: bool) -> Left:
    """Leave the mesh: tell a controller, take down what the agent set up, wipe what it kept.

    A host that holds only a copy of a member's keys takes nobody out.

    Args:
        config: the agent's settings.
        force: go on though no controller could be told, or nothing usable is kept here.

    Raises:
        NotJoinedError, CorruptStateError, MeshError: without force; nothing has changed.
        StateError: an agent runs after all.

    """
    state = StateDir(config.state_dir)
    identity = _identity(state, force=force)
    with state.locked():
        left = Left(told=False)
        if identity:
            left = await part(identity, host_id(config), identity.membership.quarantined, force=force)
        if answers(config.fastpath_socket):
            await _end_fastpath(config)
        async with Netlink.open() as netlink:
            await netlink.delete_tun(config.interface)
        state.wipe()
    return left


def _identity(state: StateDir, *, force: bool) -> Identity | None:
    try:
        return state.identity()
    except OvermeshError as error:
        if force:
            return None
        if isinstance(error, NotJoinedError):
            raise
        raise type(error)(error.cause, "leave without telling a controller: --force") from None


async def _end_fastpath(config: AgentConfig) -> None:
    target = f"unix:{config.fastpath_socket.absolute()}"
    async with grpc.aio.insecure_channel(target, options=rpc.TO_FASTPATH) as channel:
        stub = fastpath_pb2_grpc.FastpathStub(channel)  # type: ignore[no-untyped-call]
        await stub.Shutdown(fastpath_pb2.ShutdownRequest(), timeout=CALL_TIMEOUT)
