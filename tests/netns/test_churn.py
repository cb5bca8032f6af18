"""Many joins and removals through one controller, over real gRPC on loopback; agents without hosts.

The pool has far fewer addresses than there are joins, so one that leaked would soon be missed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from overmesh import rpc
from overmesh.agent.joinport import certificate_request
from overmesh.agent.peermap import Replica
from overmesh.agent.state import Identity, Keys, Membership, StateDir
from overmesh.agent.sync import Sync
from overmesh.config import ControllerConfig
from overmesh.controller import daemon
from overmesh.model import Problem
from overmesh.proto import admin_pb2, admin_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from overmesh.proto.roots import Roots
from overmesh.token import JoinToken

JOINS = 200
GROUP = 20
WATCHERS = 10


@dataclass
class Client:
    """What the test says to the controller: as hosts that join, and as meshctl."""

    join: Any
    admin: Any
    roots: Roots
    token: JoinToken

    async def let_in(self, name: str) -> tuple[Identity, Sequence[str]]:
        """Join with fresh keys; return who that is, and its addresses."""
        keys = Keys.new()
        reply = await self.join.Join(
            mesh_pb2.JoinRequest(
                token_id=self.token.id,
                token_secret=self.token.secret_text,
                name=name,
                csr=certificate_request(keys.tls, name),
                public_key=keys.public,
                host_id=name,
            )
        )
        membership = Membership(
            reply.node_id, name, "mesh", tuple(reply.controllers), reply.network, reply.node
        )
        node = mesh_pb2.NodeRecord.FromString(mesh_pb2.Signed.FromString(reply.node).body)
        certificate = x509.load_der_x509_certificate(reply.certificate)
        return Identity(keys, membership, self.roots, certificate), node.addresses

    async def remove(self, name: str) -> None:
        await self.admin.RemoveNode(admin_pb2.RemoveNodeRequest(network="mesh", node=name))


@asynccontextmanager
async def connected(config: ControllerConfig) -> AsyncIterator[tuple[daemon.Controller, Client]]:
    """Run a controller, and connect to it as strangers and as meshctl do."""
    async with AsyncExitStack() as stack:
        controller = await stack.enter_async_context(daemon.running(config))
        credentials = grpc.ssl_channel_credentials(controller.root.certificate.public_bytes(Encoding.PEM))
        options = [("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME)]
        join = grpc.aio.secure_channel(
            f"127.0.0.1:{controller.listening.join_port}", credentials, options=options
        )
        admin = grpc.aio.insecure_channel(f"unix:{controller.listening.socket}")
        await stack.enter_async_context(join)
        await stack.enter_async_context(admin)
        stub = admin_pb2_grpc.AdminStub(admin)  # type: ignore[no-untyped-call]
        token = await stub.CreateToken(admin_pb2.CreateTokenRequest(uses=0))
        yield (
            controller,
            Client(
                mesh_pb2_grpc.JoinStub(join),  # type: ignore[no-untyped-call]
                stub,
                controller.root.anchor,
                JoinToken.parse(token.secret_token),
            ),
        )


class Watcher:
    """An agent without a host: it follows the controller and keeps the map, and that is all."""

    def __init__(self, identity: Identity, directory: Path) -> None:
        mine = identity.membership
        self.replica = Replica(identity.roots, mine.network, mine.node_id, mine.node)
        state = StateDir(directory / mine.name)
        with state.locked():
            pass  # makes the directory
        self._sync = Sync(identity, mine.name, self.replica, state, self._apply)
        self._task = asyncio.create_task(self._sync.run())

    async def _apply(self) -> Sequence[Problem]:
        return ()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


class Holders:
    """Who has which address; an address that is given while somebody has it fails the test."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}

    def given(self, name: str, addresses: Sequence[str]) -> None:
        for address in addresses:
            assert address not in self.addresses, (
                f"{address} is {self.addresses[address]}'s, and given to {name}"
            )
            self.addresses[address] = name

    def freed(self, name: str) -> None:
        self.addresses = {address: holder for address, holder in self.addresses.items() if holder != name}


async def come(client: Client, holders: Holders, name: str) -> None:
    _, addresses = await client.let_in(name)
    holders.given(name, addresses)


async def go(client: Client, holders: Holders, name: str) -> None:
    """Be removed. What is freed counts as free at once: others may be given it before the reply is here."""
    holders.freed(name)
    await client.remove(name)


@pytest.mark.timeout(100)
async def test_200_joins_and_removals(tmp_path: Path) -> None:
    config = ControllerConfig(
        state_dir=tmp_path / "state",
        runtime_dir=tmp_path,
        listen="127.0.0.1",
        join_port=0,
        mesh_port=0,
        advertise=("127.0.0.1",),
        ranges=("10.77.0.0/26", "fd00:77::/64"),
    )
    holders = Holders()
    async with connected(config) as (controller, client):
        watchers = []
        for number in range(WATCHERS):
            identity, addresses = await client.let_in(f"w{number}")
            holders.given(f"w{number}", addresses)
            watchers.append(Watcher(identity, tmp_path))

        groups = [[f"n{number}" for number in range(at, at + GROUP)] for at in range(0, JOINS, GROUP)]
        for leaving, coming in zip([[], *groups], [*groups, []], strict=True):
            await asyncio.gather(
                *(go(client, holders, name) for name in leaving),
                *(come(client, holders, name) for name in coming),
            )

        waited = await client.admin.Wait(admin_pb2.WaitRequest(network="mesh", timeout_ms=20_000))
        assert waited.converged, waited
        assert waited.agents == WATCHERS
        head = controller.mirror.view("mesh").map.head
        assert {watcher.replica.digest.to_bytes() for watcher in watchers} == {head.digest}
        assert set(controller.mirror.held("addresses", "mesh")) == set(holders.addresses)
        assert len(holders.addresses) == 2 * WATCHERS

        for number in range(WATCHERS):
            await client.remove(f"w{number}")
        assert not controller.mirror.held("addresses", "mesh")
        assert not controller.mirror.held("names", "mesh")
        for watcher in watchers:
            await watcher.stop()
