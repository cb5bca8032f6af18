"""Rotation of a node's keys: two changes of its record, so that no packet is lost in between.

    announce   new and old key   others find the node by either, and begin with the new one
    finish     new key           the old one is good for nothing any more

The node says which keys its record is to hold, so asking again changes nothing. Its id stays: it follows
from the first key. That nobody else comes to have a later key is seen to by an alias, which is claimed in
the same transaction.

With the X25519 key goes the TLS key. Both are good until the rotation is finished, so that a node which
did not get the answer can still connect and renew its certificate.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from overmesh.controller.audit import Deed
from overmesh.controller.members.newcomers import Newcomers, checked_public_key
from overmesh.controller.membership import Signer, node_id, removed
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, Delete, KeyValue, Op, Put, absent, unchanged
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot, credentials
from overmesh.errors import InvalidError, MeshError
from overmesh.model import Node, node_key

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class NewKeys:
    """What a node wants its record to hold (mesh.proto, RotateRequest)."""

    public_key: bytes
    previous_public_key: bytes
    csr: bytes


@dataclass(frozen=True, slots=True)
class Rotated:
    """What it is answered: its certificate (DER), its record as an encoded Signed, and since when."""

    certificate: bytes
    node: bytes
    revision: int


class Rekeying:
    """Changes the keys of members at their own wish.

    Args:
        mirror, newcomers, signer, root: the parts of this controller.

    """

    def __init__(self, mirror: Mirror, newcomers: Newcomers, signer: Signer, root: MeshRoot) -> None:
        self._mirror = mirror
        self._newcomers = newcomers
        self._signer = signer
        self._root = root

    def check_current(self, member: Identity, tls: bytes) -> None:
        """Raise MeshError for a certificate whose key the node has since changed.

        Not CloneError: a stream that was being opened meanwhile is this very host's.

        Args:
            member: as which a call came.
            tls: fingerprint of the key with which it came.

        """
        credential = self._mirror.held("credentials", member.network).get(member.node_id)
        if credential and credentials.is_outdated(self._root, credential, tls):
            raise MeshError(
                f"node {member.node_id} has other keys by now",
                "if this host is a copy, or was restored: remove the state directory, join with a new token",
            )

    async def rotate(self, member: Identity, tls: bytes, wanted: NewKeys) -> Rotated:
        """Have a node's record hold these keys, and return a certificate for the TLS key that goes with them.

        Args:
            member: who asks.
            tls: fingerprint of the key with which it asks.
            wanted: the keys.

        Raises:
            RemovedError: there is no such member.
            MeshError: it asks with keys that it had before.
            InvalidError: the keys can't be right, or are not this node's.
            StoreUnavailableError: asking again tells.

        """
        checked_public_key(wanted.public_key)
        request = CertificateRequest.parse(wanted.csr)
        await self._mirror.look_up(keys.credential(member.network, member.node_id))
        result = await self._mirror.change(lambda: self._plan(member, tls, wanted, request))
        view = self._mirror.view(member.network)
        items = view.map.items
        if node_key(member.node_id) not in items:
            raise removed(member.network)
        step = "are changing" if wanted.previous_public_key else "were changed"
        if result.succeeded:
            _log.info(f"keys of a node {step}", extra=view.log_fields(member.node_id))
        return Rotated(
            self._root.issue_node(request, member), items[node_key(member.node_id)], result.revision
        )

    def _plan(
        self, member: Identity, tls: bytes, wanted: NewKeys, request: CertificateRequest
    ) -> Change | None:
        view = self._mirror.view(member.network)
        credential = self._mirror.held("credentials", member.network).get(member.node_id)
        found = self._newcomers.member(view, member.node_id)
        if credential is None or found is None:
            raise removed(member.network)
        self.check_current(member, tls)
        kv, node = found
        after = _with_keys(node, wanted)
        fingerprints = [request.fingerprint, *([tls] if wanted.previous_public_key else [])]
        tied = credentials.put(self._root, node.network, node.id, *dict.fromkeys(fingerprints))
        ops: list[Op] = [tied] if tied.value != credential.value else []
        if after == node:
            return Change([unchanged(kv), unchanged(credential)], ops) if ops else None
        claims, aliases = self._claims(node, after)
        step = "changing" if after.previous_public_key else "changed"
        return Change(
            [unchanged(kv), unchanged(credential), *claims],
            [Put(kv.key, self._signer.sign(after)), *ops, *aliases],
            Deed(f"node keys {step}", node.network, node.id, node.name),
        )

    def _claims(self, before: Node, after: Node) -> tuple[list[Compare], list[Op]]:
        """Return how a node comes to have its keys to itself, and gives up those that it had."""
        network, alias = after.network, node_id(after.public_key)
        ops: list[Op] = [Delete(kv.key) for kv in self._given_up(after)]
        if after.public_key in before.public_keys or alias == after.id:
            return [], ops
        claim, foreign = keys.alias(network, alias), keys.node(network, alias)
        if self._mirror.key(claim) or self._mirror.key(foreign):
            raise InvalidError("this X25519 key is or was that of another member", "make a new one")
        return [absent(claim), absent(foreign)], [*ops, Put(claim, after.id.encode())]

    def _given_up(self, after: Node) -> Iterator[KeyValue]:
        kept = {node_id(key) for key in after.public_keys}
        for alias, kv in self._mirror.held("aliases", after.network).items():
            if kv.value == after.id.encode() and alias not in kept:
                yield kv


def _with_keys(node: Node, wanted: NewKeys) -> Node:
    """Return a node's record with these keys; InvalidError unless one of them is its own already."""
    key, previous = wanted.public_key, wanted.previous_public_key
    if previous == key or (previous or key) not in node.public_keys:
        raise InvalidError(
            f"the keys of node {node.name} are not those that it changes from",
            "restore its newest state, or remove it and join again with a new token",
        )
    return replace(node, public_key=key, previous_public_key=previous)
