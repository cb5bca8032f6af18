"""gRPC wiring only: three servers, so that each port offers its own services and nothing else.

join port    server TLS   Join              any host with a token
mesh port    mutual TLS   Mesh              members, by their certificate
             likewise     Controllers       other controllers, by theirs
unix socket  0600         Admin             root of this host
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from overmesh import rpc
from overmesh.controller.admin import AdminService
from overmesh.controller.fleet import ControllersService
from overmesh.controller.fleet.presence import Health
from overmesh.controller.join import Admission, Application
from overmesh.controller.members.pending import LONGEST_WAIT
from overmesh.controller.members.rekeying import NewKeys
from overmesh.controller.members.remembered import Remembered
from overmesh.controller.membership import AGENT_ENDPOINTS
from overmesh.controller.parts import Parts
from overmesh.controller.serving.boundary import Answered, Begin, Boundary
from overmesh.controller.serving.ports import any_address, take_port, take_socket
from overmesh.controller.store.turns import Crowd
from overmesh.controller.trust import Identity
from overmesh.controller.trust.credentials import of_caller
from overmesh.controller.watch import Watch
from overmesh.errors import InvalidError, RecordError
from overmesh.model import Endpoint
from overmesh.proto import admin_pb2, admin_pb2_grpc, controllers_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from overmesh.proto.codec import endpoint_value, lanes_value, mode_values, suite_values, text_value

JOIN_SERVICE = mesh_pb2.DESCRIPTOR.services_by_name["Join"].full_name
MESH_SERVICE = mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name

_OPTIONS: Sequence[tuple[str, Any]] = (
    *rpc.KEEPALIVE,
    *rpc.MESSAGE_LIMIT,
    # Else a second controller would silently share the port.
    ("grpc.so_reuseport", 0),
    # Agents ping as often as rpc.KEEPALIVE says; by default a server takes that for abuse.
    ("grpc.http2.max_ping_strikes", 0),
    # What agents send is short. Without measuring how fast more could come, an ack costs a fifth less.
    ("grpc.http2.bdp_probe", 0),
    # The default of 1000 cancels streams when thousands of agents come at once (measured).
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 30_000),
)

# Seconds; hosts that come within them join in one transaction.
_MOMENT = 0.05

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("overmesh.controller")


# Services.


class JoinService(mesh_pb2_grpc.JoinServicer):
    """Requests in, replies out; join.py does the work.

    Args:
        parts: of this controller.
        controllers: returns host:port of the mesh ports that members are told.
        joined: is told "new" or "again" of every host that was let in.

    """

    def __init__(
        self, parts: Parts, controllers: Callable[[], Sequence[str]], joined: Callable[[str], None]
    ) -> None:
        self._parts = parts
        self._controllers = controllers
        self._joined = joined
        self._crowd = Crowd(_MOMENT)

    async def Join(self, request: mesh_pb2.JoinRequest, _context: Context) -> mesh_pb2.JoinReply:  # noqa: N802
        """Redeem a token."""
        await self._crowd.go_on()
        admission = await self._parts.joins.join(
            Application(
                token_id=request.token_id,
                token_secret=request.token_secret,
                name=request.name,
                csr=request.csr,
                public_key=request.public_key,
                endpoints=_endpoints(request.endpoints, unknown_port=True),
                host_id=request.host_id,
                suites=suite_values(request.suites),
                lanes=_lanes(request.lanes) if request.lanes else 0,
                modes=mode_values(request.modes),
                wait=min(request.wait_seconds, LONGEST_WAIT),
            )
        )
        self._joined("again" if admission.already_member else "new")
        return self._reply(admission)

    def _reply(self, admission: Admission) -> mesh_pb2.JoinReply:
        return mesh_pb2.JoinReply(
            node_id=admission.node_id,
            certificate=admission.certificate,
            network=admission.network,
            node=admission.node,
            controllers=self._controllers(),
            revision=admission.revision,
            already_member=admission.already_member,
            root=self._parts.root.der,
        )

    async def Renew(self, request: mesh_pb2.RenewRequest, _context: Context) -> mesh_pb2.RenewReply:  # noqa: N802
        """Give a member another certificate."""
        renewed = await self._parts.renewals.renew(Identity(request.network, request.node_id), request.csr)
        return mesh_pb2.RenewReply(
            certificate=renewed.certificate, network=renewed.network, node=renewed.node, time=renewed.time
        )

    async def Roots(self, _request: mesh_pb2.RootsRequest, _context: Context) -> mesh_pb2.RootsReply:  # noqa: N802
        """Show how the mesh root came to be what it is."""
        return mesh_pb2.RootsReply(
            records=[mesh_pb2.Item(key=key, signed=signed) for key, signed in self._parts.mirror.root_records]
        )


class MeshService:
    """The mesh port's calls; who calls is what its certificate says.

    Args:
        parts: of this controller.
        remembered: takes what agents have seen of the store.
        acked: is told how many seconds an ack took.

    """

    def __init__(self, parts: Parts, remembered: Remembered, acked: Callable[[float], None]) -> None:
        self._parts = parts
        self._remembered = remembered
        self._watch = Watch(parts.agents, parts.clones, self._healthy, acked)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what serves them. Watch replies are bytes already: encoded once for all agents."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Watch": grpc.stream_stream_rpc_method_handler(
                self._serve_watch, mesh_pb2.WatchRequest.FromString, None
            ),
            "Report": grpc.unary_unary_rpc_method_handler(
                self._report, mesh_pb2.ReportRequest.FromString, mesh_pb2.ReportReply.SerializeToString
            ),
            "Leave": grpc.unary_unary_rpc_method_handler(
                self._leave, mesh_pb2.LeaveRequest.FromString, mesh_pb2.LeaveReply.SerializeToString
            ),
            "Rotate": grpc.unary_unary_rpc_method_handler(
                self._rotate, mesh_pb2.RotateRequest.FromString, mesh_pb2.RotateReply.SerializeToString
            ),
            "Head": grpc.unary_unary_rpc_method_handler(
                self._head, mesh_pb2.HeadRequest.FromString, mesh_pb2.HeadReply.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(MESH_SERVICE, handlers)

    async def _serve_watch(self, _requests: Any, context: Context) -> None:
        await self._watch.serve(self._caller(context), context)

    async def _report(self, request: mesh_pb2.ReportRequest, context: Context) -> mesh_pb2.ReportReply:
        caller = self._caller(context)
        self._parts.agents.check_connected(caller, request.host_id, request.instance)
        self._remembered.witnessed(caller, request.withheld)
        endpoints, lanes = _endpoints(request.endpoints), _lanes(request.lanes)
        revision = await self._parts.membership.report(caller.network, caller.node_id, endpoints, lanes)
        return mesh_pb2.ReportReply(revision=revision)

    def _healthy(self, caller: Identity, said: mesh_pb2.Health) -> None:
        health = Health(text_value(said.backend), text_value(said.backend_reason), said.mtu)
        self._parts.presence.reported(caller, health)

    async def _leave(self, request: mesh_pb2.LeaveRequest, context: Context) -> mesh_pb2.LeaveReply:
        caller = self._caller(context)
        await self._parts.clones.check_leaving(caller, request.host_id, request.instance)
        revision = await self._parts.revocations.leave(caller.network, caller.node_id)
        return mesh_pb2.LeaveReply(revision=revision)

    async def _rotate(self, request: mesh_pb2.RotateRequest, context: Context) -> mesh_pb2.RotateReply:
        caller, tls = self._caller(context), of_caller(context.auth_context())
        self._parts.clones.check_own(caller, request.host_id, request.instance)
        wanted = NewKeys(request.public_key, request.previous_public_key, request.csr)
        rotated = await self._parts.rekeying.rotate(caller, tls, wanted)
        return mesh_pb2.RotateReply(
            certificate=rotated.certificate, node=rotated.node, revision=rotated.revision
        )

    async def _head(self, _request: mesh_pb2.HeadRequest, context: Context) -> mesh_pb2.HeadReply:
        caller = self._caller(context)
        self._parts.agents.check_member(caller)
        await self._parts.contact.all_known(0)
        head = self._parts.mirror.view(caller.network).map.head
        return mesh_pb2.HeadReply(revision=head.revision, digest=head.digest)

    def _caller(self, context: Context) -> Identity:
        shown = context.auth_context()
        caller = Identity.of_caller(shown)
        self._parts.rekeying.check_current(caller, of_caller(shown))
        return caller


def _endpoints(messages: Sequence[mesh_pb2.Endpoint], *, unknown_port: bool = False) -> tuple[Endpoint, ...]:
    try:
        return tuple(endpoint_value(message, unknown_port=unknown_port) for message in messages)
    except RecordError as error:
        raise InvalidError(error.cause, AGENT_ENDPOINTS) from None


def _lanes(number: int) -> int:
    try:
        return lanes_value(number)
    except RecordError as error:
        raise InvalidError(error.cause, "set `lanes` in the agent's configuration") from None


# Servers.


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the servers listen; ports are those that were got."""

    host: str
    join_port: int
    mesh_port: int
    socket: Path


class Servers:
    """The three servers, started and stopped together. answered, begin (of meshctl's calls): see Boundary."""

    def __init__(self, answered: Answered, begin: Begin) -> None:
        boundary = Boundary(answered)
        self._join, self._mesh, self._admin = (
            grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
            for interceptor in (boundary, boundary, Boundary(answered, begin))
        )
        self._health = health.aio.HealthServicer()

    def listen(
        self,
        host: str,
        join_port: int,
        mesh_port: int,
        socket_path: Path,
        credentials: Callable[[bool], grpc.ServerCredentials],
    ) -> Listening:
        """Take the ports and the socket; nothing is answered before `start`.

        Args:
            host: address to listen on; empty: all, of both families where the host has both.
            join_port: 0: whichever is free.
            mesh_port: likewise.
            socket_path: of the admin service; a stale one is replaced.
            credentials: TLS credentials, with client certificates demanded (True) or not.

        Raises:
            PortInUseError: names the port or socket that another process has.
            ConfigError: the host has no such address.
            PermissionMissingError: the port or the socket's directory is out of bounds.

        """
        host = host or any_address()
        return Listening(
            host,
            take_port(self._join, host, join_port, credentials(False)),
            take_port(self._mesh, host, mesh_port, credentials(True)),
            take_socket(self._admin, socket_path),
        )

    async def start(
        self, join: JoinService, mesh: MeshService, controllers: ControllersService, admin: AdminService
    ) -> None:
        """Begin to answer."""
        mesh_pb2_grpc.add_JoinServicer_to_server(join, self._join)  # type: ignore[no-untyped-call]
        self._mesh.add_generic_rpc_handlers((mesh.handler(),))
        controllers_pb2_grpc.add_ControllersServicer_to_server(controllers, self._mesh)  # type: ignore[no-untyped-call]
        admin_pb2_grpc.add_AdminServicer_to_server(admin, self._admin)  # type: ignore[no-untyped-call]
        for server in (self._join, self._mesh, self._admin):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([MESH_SERVICE, reflection.SERVICE_NAME], self._mesh)
        reflection.enable_server_reflection([ADMIN_SERVICE, reflection.SERVICE_NAME], self._admin)
        for service in ("", JOIN_SERVICE, MESH_SERVICE, ADMIN_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        for server in (self._join, self._mesh, self._admin):
            await server.start()

    async def drain(self) -> None:
        """Tell whoever asks that this controller is going away."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuse new calls; let those under way finish within `grace` seconds."""
        await asyncio.gather(*(server.stop(grace) for server in (self._join, self._mesh, self._admin)))
