"""Leaving on a host whose agent does not run: what the agent would do (daemon.py), in its place."""

import grpc.aio

from overmesh import rpc
from overmesh.agent import calls
from overmesh.agent.fastpath import CALL_TIMEOUT, answers
from overmesh.agent.netlink import Netlink
from overmesh.agent.preflight import host_id
from overmesh.agent.state import StateDir
from overmesh.config import AgentConfig
from overmesh.errors import NotJoinedError, OvermeshError
from overmesh.proto import fastpath_pb2, fastpath_pb2_grpc


async def leave(config: AgentConfig, *, force: bool) -> bool:
    """Leave the mesh: tell a controller, take down what the agent set up, wipe what it kept.

    Args:
        config: the agent's settings.
        force: go on though no controller could be told, or nothing usable is kept here.

    Returns:
        Whether a controller was told.

    Raises:
        NotJoinedError, CorruptStateError, MeshError: without force; nothing has changed.
        StateError: an agent runs after all.

    """
    state = StateDir(config.state_dir)
    told = await _tell(config, state, force=force)
    with state.locked():
        if answers(config.fastpath_socket):
            await _end_fastpath(config)
        async with Netlink.open() as netlink:
            await netlink.delete_tun(config.interface)
        state.wipe()
    return told


async def _tell(config: AgentConfig, state: StateDir, *, force: bool) -> bool:
    try:
        identity = state.identity()
        await calls.leave(identity, host_id(config), identity.membership.quarantined)
    except OvermeshError as error:
        if force:
            return False
        if isinstance(error, NotJoinedError):
            raise
        raise type(error)(error.cause, "leave without telling a controller: --force") from None
    return True


async def _end_fastpath(config: AgentConfig) -> None:
    target = f"unix:{config.fastpath_socket.absolute()}"
    async with grpc.aio.insecure_channel(target, options=rpc.TO_FASTPATH) as channel:
        stub = fastpath_pb2_grpc.FastpathStub(channel)  # type: ignore[no-untyped-call]
        await stub.Shutdown(fastpath_pb2.ShutdownRequest(), timeout=CALL_TIMEOUT)
