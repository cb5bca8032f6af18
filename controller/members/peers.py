"""Stock WireGuard peers: members that run no agent.

A peer is a key under a name. It gets addresses and a signed record as every node does, and no
certificate: nobody connects as it, so it has no map, no presence, and nobody waits for it. What the
mesh knows of it the operator has said; `meshctl peer config` tells the peer what it has to know.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overmesh.controller.audit import Deed
from overmesh.controller.members.names import checked_label
from overmesh.controller.members.newcomers import Newcomers, checked_public_key
from overmesh.controller.membership import Membership, node_id
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.view import NetworkView
from overmesh.errors import ExistsError, InvalidError, NotFoundError
from overmesh.model import Endpoint, Kind, Mode, Node, Suite

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Added:
    """Which node the peer is, and since which revision it is as asked for."""

    node_id: str
    revision: int
    already_member: bool


class Peers:
    """Lets stock WireGuard peers in.

    Args:
        mirror, membership, newcomers: the parts of this controller.

    """

    def __init__(self, mirror: Mirror, membership: Membership, newcomers: Newcomers) -> None:
        self._mirror = mirror
        self._membership = membership
        self._newcomers = newcomers

    async def add(self, network: str, name: str, public_key: bytes, endpoints: Sequence[Endpoint]) -> Added:
        """Make a peer a member, or find that it is one.

        A member is afterwards where `endpoints` says, and its membership is renewed when it is due.

        Args:
            network: its name; a sealed one.
            name: a DNS label.
            public_key: X25519.
            endpoints: best first; none: only the peer can begin to talk.

        Raises:
            NotFoundError, InvalidError, NameTakenError, PoolExhaustedError
            ExistsError: another member has the key.

        """
        self._membership.check_endpoints(endpoints, "give one at which other hosts reach the peer, or none")
        peer = Node(
            id=node_id(checked_public_key(public_key)),
            network=network,
            name=checked_label("peer name", name),
            public_key=public_key,
            addresses=(),
            suites=(Suite.CHACHA,),
            kind=Kind.WIREGUARD,
        )
        result = await self._mirror.change(lambda: self._plan(peer, tuple(endpoints)))
        kv = self._mirror.held("nodes", network).get(peer.id)
        if kv is None:
            raise NotFoundError(f"peer {peer.name} was removed while it was added", "add it again")
        new = result.succeeded and kv.create_revision == result.revision
        if new:
            _log.info("peer added", extra={"network": network, "node": peer.name, "id": peer.id})
        return Added(peer.id, result.revision, already_member=not new)

    def _plan(self, peer: Node, endpoints: tuple[Endpoint, ...]) -> Change | None:
        view = self._mirror.view(peer.network)
        _check_sealed(view)
        found = self._newcomers.member(view, peer.id)
        if found is None:
            deed = Deed("peer added", view.name, peer.id, peer.name)
            return replace(self._newcomers.admit(view, peer, endpoints), deed=deed)
        record, member = found
        _check_same(member, peer)
        return self._newcomers.readmit(view, record, member, endpoints)


def _check_sealed(view: NetworkView) -> None:
    if view.network.mode is not Mode.SEALED:
        raise InvalidError(
            f"network {view.name} is plain: a stock WireGuard peer can't take part in it",
            "make a sealed one: `meshctl network create NAME`, and name it with --network",
        )


def _check_same(member: Node, peer: Node) -> None:
    if member.kind is not Kind.WIREGUARD:
        raise ExistsError(
            f"this public key is that of node {member.name}, which runs an agent",
            "give the peer a key of its own",
        )
    if member.name != peer.name:
        raise ExistsError(
            f"this public key is that of peer {member.name}",
            f"give {peer.name} a key of its own, or remove that one: `meshctl peer remove {member.name}`",
        )
