"""What meshctl asks about who changed what."""

from typing import Any

import grpc.aio

from overmesh.controller.audit import Entry
from overmesh.controller.parts import Parts
from overmesh.proto import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Auditing(admin_pb2_grpc.AdminServicer):
    """The part of the admin service that tells what was done."""

    _parts: Parts

    async def ListAudit(self, request: admin_pb2.AuditRequest, context: Context) -> None:  # noqa: N802
        """Tell what was changed, and with `follow` what is changed from then on."""
        async for entry in self._parts.audit.entries(request.since, follow=request.follow):
            if entry.concerns(request.node):
                await context.write(_audit_message(entry))


def _audit_message(entry: Entry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(
        id=entry.id,
        at_ms=entry.at_ms,
        what=entry.deed.what,
        network=entry.deed.network,
        subject=entry.deed.subject,
        name=entry.deed.name,
        who=entry.who,
        controller=entry.controller,
        details=entry.deed.details,
        revision=entry.revision,
        genuine=entry.genuine,
        **{"from": entry.origin},
    )


def removed_node(entry: Entry) -> admin_pb2.Node:
    """Return what the entry of a removal still tells of the node."""
    deed = entry.deed
    return admin_pb2.Node(
        id=deed.subject,
        name=deed.name,
        network=deed.network,
        addresses=deed.details.get("addresses", "").split(),
    )
