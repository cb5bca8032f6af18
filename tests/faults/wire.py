"""How a client talks to one controller: the join port, the mesh port, and the socket of its host."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from cryptography import x509

from overmesh import rpc
from overmesh.agent.state import Identity, Keys, Membership
from overmesh.proto import admin_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from overmesh.proto.roots import Roots

# Seconds for one attempt; as many attempts are made as fit in the patience.
TIMEOUT = 8.0
PATIENCE = 40.0
# A client that waits out gRPC's own backoff would measure that.
_PATIENT: list[tuple[str, Any]] = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller, as clients know it. address: of its mesh port."""

    name: str
    address: str
    _join: Any
    _admin: Any

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, join: str, mesh: str, socket: str, root: Path) -> AsyncIterator[Self]:
        """Talk to a controller for the length of a block."""
        credentials = grpc.ssl_channel_credentials(root.read_bytes())
        options = [("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME), *_PATIENT, *rpc.KEEPALIVE]
        async with (
            grpc.aio.secure_channel(join, credentials, options=options) as joining,
            grpc.aio.insecure_channel(f"unix:{socket}", options=_PATIENT) as admin,
        ):
            yield cls(
                name,
                mesh,
                mesh_pb2_grpc.JoinStub(joining),  # type: ignore[no-untyped-call]
                admin_pb2_grpc.AdminStub(admin),  # type: ignore[no-untyped-call]
            )

    async def join(self, request: mesh_pb2.JoinRequest, timeout: float) -> mesh_pb2.JoinReply:
        """Ask to be let in.

        Raises:
            OvermeshError: as rpc.raised has it.

        """
        reply: mesh_pb2.JoinReply = await self._asked(self._join.Join(request, timeout=timeout))
        return reply

    async def admin(self, method: str, request: Any, timeout: float, known_as: str) -> Any:
        """Ask what only operators may; who asks again under the same request id is answered the same.

        Raises:
            OvermeshError: as rpc.raised has it.

        """
        metadata = ((rpc.REQUEST_ID, known_as),)
        return await self._asked(getattr(self._admin, method)(request, timeout=timeout, metadata=metadata))

    async def _asked(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise rpc.raised(error, f"controller {self.name}") from None


def identity(
    keys: Keys, name: str, reply: mesh_pb2.JoinReply, controllers: Sequence[str], root: Path
) -> Identity:
    """Return who a host is that was let in, and at which mesh ports it asks."""
    membership = Membership(
        reply.node_id, name, "mesh", tuple(controllers), reply.network, reply.node, host_id=name
    )
    certificate = x509.load_der_x509_certificate(reply.certificate)
    return Identity(keys, membership, Roots.from_pem(root.read_bytes()), certificate)
