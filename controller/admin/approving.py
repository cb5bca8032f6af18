"""What meshctl asks about hosts that wait to be let in."""

from typing import Any

import grpc.aio

from overmesh.config import DEFAULT_NETWORK
from overmesh.controller.members.pending import APPROVED, DENIED, Pending
from overmesh.controller.parts import Parts
from overmesh.errors import NotFoundError
from overmesh.proto import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Approving(admin_pb2_grpc.AdminServicer):
    """The part of the admin service that lets an operator decide."""

    _parts: Parts

    async def ListPending(  # noqa: N802
        self, request: admin_pb2.ListPendingRequest, _context: Context
    ) -> admin_pb2.ListPendingReply:
        """List the hosts that wait for approval, and those that did lately."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        return admin_pb2.ListPendingReply(
            pending=map(self._pending_message, self._parts.pending.known(view.name))
        )

    async def ApproveNode(  # noqa: N802
        self, request: admin_pb2.DecideRequest, _context: Context
    ) -> admin_pb2.DecideReply:
        """Let a host in."""
        return await self._decide(request, APPROVED)

    async def DenyNode(self, request: admin_pb2.DecideRequest, _context: Context) -> admin_pb2.DecideReply:  # noqa: N802
        """Refuse a host."""
        return await self._decide(request, DENIED)

    async def _decide(self, request: admin_pb2.DecideRequest, decision: str) -> admin_pb2.DecideReply:
        network = request.network or DEFAULT_NETWORK
        try:
            host, revision = await self._parts.pending.decide(network, request.node, decision)
        except NotFoundError:
            # The answer to the same request was lost, and the host has joined since.
            if done := await self._parts.audit.done():
                known = admin_pb2.Pending(
                    id=done.deed.subject, name=done.deed.name, network=network, state=decision
                )
                return admin_pb2.DecideReply(pending=known, revision=done.revision)
            raise
        return admin_pb2.DecideReply(pending=self._pending_message(host), revision=revision)

    def _pending_message(self, host: Pending) -> admin_pb2.Pending:
        return admin_pb2.Pending(
            id=host.id,
            name=host.name,
            network=host.network,
            public_key=bytes.fromhex(host.public_key),
            fingerprint=bytes.fromhex(host.fingerprint),
            host_id=host.host_id,
            token=host.token,
            tags=host.tags,
            asked=host.asked,
            expires=host.expires,
            state=host.state(self._parts.clock()),
            decided_by=host.decided_by,
            **{"from": host.origin},
        )
