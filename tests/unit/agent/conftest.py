"""A real controller on loopback, and a host that wants in."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from overmesh.agent import join as joins
from overmesh.agent.join import Joined
from overmesh.agent.state import StateDir
from overmesh.config import AgentConfig, ControllerConfig
from overmesh.controller.daemon import Controller, running
from overmesh.model import Mode
from overmesh.proto import admin_pb2, admin_pb2_grpc

RANGES = ("10.213.0.0/16", "fd13:9::/64")


@dataclass
class Mesh:
    """The controller at work, and what an operator does with it."""

    config: ControllerConfig
    controller: Controller

    @property
    def join_port(self) -> str:
        return f"127.0.0.1:{self.controller.listening.join_port}"

    async def admin(self, method: str, request: Any) -> Any:
        async with grpc.aio.insecure_channel(f"unix:{self.config.socket}") as channel:
            stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            return await getattr(stub, method)(request)

    async def token(self, uses: int = 0, *, approval: bool = False) -> str:
        request = admin_pb2.CreateTokenRequest(ttl_seconds=600, uses=uses, approval=approval)
        return str((await self.admin("CreateToken", request)).secret_token)

    async def nodes(self) -> list[str]:
        reply = await self.admin("ListNodes", admin_pb2.ListNodesRequest(network="mesh"))
        return [node.name for node in reply.nodes]

    async def remove(self, name: str) -> None:
        await self.admin("RemoveNode", admin_pb2.RemoveNodeRequest(network="mesh", node=name))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    config = ControllerConfig(
        state_dir=tmp_path / "controller",
        runtime_dir=tmp_path / "controller-run",
        listen="127.0.0.1",
        join_port=0,
        mesh_port=0,
        advertise=("127.0.0.1",),
        ranges=RANGES,
    )
    async with running(config) as controller:
        yield Mesh(config, controller)


@pytest.fixture(autouse=True)
def capable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these tests run where there is neither a TUN device nor root."""
    monkeypatch.setattr(joins, "check_host", lambda _: None)
    monkeypatch.setattr(joins, "possible_modes", lambda _: tuple(Mode))


def host(tmp_path: Path, name: str) -> AgentConfig:
    """Return the settings of a host with files of its own."""
    return AgentConfig(
        state_dir=tmp_path / name, runtime_dir=tmp_path / f"{name}-run", host_id=name, interface="om-none"
    )


async def joined(mesh: Mesh, config: AgentConfig) -> Joined:
    """Make a host a member under its directory's name."""
    token = await mesh.token()
    return await joins.join(config, mesh.join_port, token, config.state_dir.name, lambda *_: None)


def state(config: AgentConfig) -> StateDir:
    return StateDir(config.state_dir)
