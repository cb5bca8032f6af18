"""Parts of a controller, hosts that want to join it, and a clock to turn."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from overmesh import rpc
from overmesh.agent.joinport import certificate_request
from overmesh.config import ControllerConfig
from overmesh.controller.daemon import Controller
from overmesh.controller.join import Application
from overmesh.controller.membership import node_id
from overmesh.controller.parts import Parts
from overmesh.controller.store import open_store
from overmesh.controller.trust import MeshRoot
from overmesh.model import Endpoint, Suite
from overmesh.proto import admin_pb2, admin_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from overmesh.token import JoinToken

ROOT = MeshRoot.new()
START = 1_800_000_000.0
RANGES = ("10.9.0.0/16", "fd00:9::/64")


@dataclass
class Clock:
    """Unix seconds that pass only when a test says so."""

    now: float = START

    def __call__(self) -> float:
        return self.now


def x25519_public_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@dataclass
class Host:
    """A host with keys of its own."""

    name: str
    host_id: str = ""
    tls: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP256R1()))
    public_key: bytes = field(default_factory=x25519_public_key)
    endpoints: tuple[Endpoint, ...] = (Endpoint(ip_address("192.0.2.7"), 6081),)
    suites: tuple[Suite, ...] = (Suite.CHACHA, Suite.AES)

    @property
    def id(self) -> str:
        return node_id(self.public_key)

    def csr(self) -> bytes:
        return certificate_request(self.tls, self.name)

    def application(self, token: JoinToken, **other: Any) -> Application:
        said = Application(
            token_id=token.id,
            token_secret=token.secret_text,
            name=self.name,
            csr=self.csr(),
            public_key=self.public_key,
            endpoints=self.endpoints,
            host_id=self.host_id or "one",
            suites=self.suites,
            modes=(),
        )
        return replace(said, **other)

    def request(self, token: JoinToken, **other: Any) -> mesh_pb2.JoinRequest:
        said = self.application(token, **other)
        return mesh_pb2.JoinRequest(
            token_id=said.token_id,
            token_secret=said.token_secret,
            name=said.name,
            csr=said.csr,
            public_key=said.public_key,
            endpoints=[
                mesh_pb2.Endpoint(address=str(place.address), port=place.port) for place in said.endpoints
            ],
            host_id=said.host_id,
            suites=[mesh_pb2.Suite.Name(suite) for suite in said.suites],
            modes=[mesh_pb2.Mode.Name(mode) for mode in said.modes],
            lanes=said.lanes,
        )


class Mesh(Parts):
    """A controller's parts without its servers, and what tests do with them."""

    clock: Clock

    async def token(self, *, network: str = "mesh", ttl: int = 3600, uses: int = 0) -> JoinToken:
        return (await self.tokens.create(network, ttl, uses, ()))[1]

    async def joined(self, name: str, token: JoinToken | None = None) -> Host:
        host = Host(name)
        await self.joins.join(host.application(token or await self.token()))
        return host

    def addresses(self, network: str = "mesh") -> list[str]:
        return sorted(self.mirror.held("addresses", network))


@asynccontextmanager
async def mesh(path: Path, ranges: tuple[str, ...] = RANGES) -> AsyncIterator[Mesh]:
    """Run those parts on a real embedded store, with the default network."""
    here = Mesh.of(open_store(f"sqlite:{path / 'store.db'}"), ROOT, Clock(), "c1")
    await here.mirror.load()
    following = asyncio.create_task(here.mirror.follow())
    try:
        await here.membership.ensure_network(ranges)
        yield here
    finally:
        following.cancel()
        await asyncio.wait({following})
        await here.store.close()


def config(path: Path, **other: Any) -> ControllerConfig:
    """Return settings for a controller on free ports of this host's loopback."""
    return replace(
        ControllerConfig(
            state_dir=path / "state",
            runtime_dir=path / "run",
            listen="127.0.0.1",
            join_port=0,
            mesh_port=0,
            advertise=("127.0.0.1",),
            ranges=RANGES,
            metrics="off",
        ),
        **other,
    )


def share_root(source: Path, state_dir: Path) -> None:
    """Give a controller the root of another below `source`, if one has run there."""
    state_dir.mkdir(parents=True, exist_ok=True)
    for name in ("root.key", "root.pem"):
        found = next(source.glob(f"*/state/{name}"), None)
        if found and not (state_dir / name).exists():
            shutil.copy(found, state_dir / name)


@dataclass
class Client:
    """Real channels to a real controller."""

    settings: ControllerConfig
    root_pem: bytes
    join_port: int
    mesh_port: int
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.AdminStub(self._kept(grpc.aio.insecure_channel(f"unix:{self.settings.socket}")))  # type: ignore[no-untyped-call]

    @property
    def join(self) -> Any:
        credentials = grpc.ssl_channel_credentials(self.root_pem)
        return mesh_pb2_grpc.JoinStub(self._secure(self.join_port, credentials))  # type: ignore[no-untyped-call]

    async def token(self, **said: Any) -> JoinToken:
        reply = await self.admin.CreateToken(admin_pb2.CreateTokenRequest(**said))
        return JoinToken.parse(reply.secret_token)

    async def joined(self, host: Host, token: JoinToken | None = None) -> Any:
        """Return a MeshStub of a host that has just joined."""
        reply = await self.join.Join(host.request(token or await self.token()))
        return self.mesh(host, reply.certificate)

    def mesh(self, host: Host, certificate: bytes, of: Any = mesh_pb2_grpc.MeshStub) -> Any:
        key = host.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.mesh_as(key, x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM), of)

    def mesh_as(self, key: bytes, chain: bytes, of: Any = mesh_pb2_grpc.MeshStub) -> Any:
        credentials = grpc.ssl_channel_credentials(self.root_pem, key, chain)
        return of(self._secure(self.mesh_port, credentials))

    def _secure(self, port: int, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        options = [
            ("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return self._kept(grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options))

    def _kept(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self.channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


@asynccontextmanager
async def client(settings: ControllerConfig, controller: Controller) -> AsyncIterator[Client]:
    """Talk to a controller for the length of a block."""
    here = controller.listening
    talking = Client(settings, controller.root.pem, here.join_port, here.mesh_port)
    try:
        yield talking
    finally:
        await talking.close()
