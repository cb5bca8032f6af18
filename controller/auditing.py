"""Audit entries as meshctl gets them."""

from overmesh.controller.audit import Entry
from overmesh.proto import admin_pb2


def audit_message(entry: Entry) -> admin_pb2.AuditEntry:
    """Return an entry as it travels."""
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
