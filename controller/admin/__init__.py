"""What meshctl asks of the controller: tokens, nodes, networks, and whether all agents are in step."""

import time
from collections.abc import Sequence
from typing import Any

import grpc.aio

from overmesh.config import DEFAULT_NETWORK
from overmesh.controller.admin.approving import Approving
from overmesh.controller.admin.auditing import Auditing, removed_node
from overmesh.controller.admin.rotating import Rotating
from overmesh.controller.agents import Sighting
from overmesh.controller.fleet import Fleet
from overmesh.controller.members.tokens import Token
from overmesh.controller.parts import Parts
from overmesh.controller.rotation.roots import Rotation
from overmesh.controller.trust import Identity
from overmesh.controller.view import NetworkView
from overmesh.errors import InvalidError, NotFoundError
from overmesh.model import Mode, Problem, Revocation, endpoints_key, node_key, owner
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.proto.codec import endpoint_message, endpoint_value, problem_messages

DEFAULT_TTL = 86400

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(Auditing, Approving, Rotating):
    """Requests in, replies out; an empty network name stands for the default network.

    Args:
        parts: of this controller.
        fleet: all controllers, to ask.
        rotation: of the mesh root.
        join_target: host or host:port that new hosts are told to join at.

    """

    def __init__(self, parts: Parts, fleet: Fleet, rotation: Rotation, join_target: str) -> None:
        self._parts = parts
        self._fleet = fleet
        self._rotation = rotation
        self._join_target = join_target

    # Tokens.

    async def CreateToken(  # noqa: N802
        self, request: admin_pb2.CreateTokenRequest, _context: Context
    ) -> admin_pb2.CreateTokenReply:
        """Make a token; its secret is in this reply and nowhere else."""
        token, secret = await self._parts.tokens.create(
            request.network or DEFAULT_NETWORK,
            request.ttl_seconds or DEFAULT_TTL,
            request.uses,
            request.tags,
            approval=request.approval,
        )
        line = f"meshctl join {self._join_target} --token {secret}"
        return admin_pb2.CreateTokenReply(
            token=_token_message(token), secret_token=str(secret), join_line=line
        )

    async def ListTokens(  # noqa: N802
        self, request: admin_pb2.ListTokensRequest, _context: Context
    ) -> admin_pb2.ListTokensReply:
        """List tokens, of all networks unless one is named."""
        tokens = self._parts.tokens.known(request.network)
        return admin_pb2.ListTokensReply(tokens=[_token_message(token) for token in tokens])

    async def RevokeToken(  # noqa: N802
        self, request: admin_pb2.RevokeTokenRequest, _context: Context
    ) -> admin_pb2.RevokeTokenReply:
        """Let no one in with a token any more."""
        return admin_pb2.RevokeTokenReply(revision=await self._parts.tokens.revoke(request.id))

    # Nodes.

    async def ListNodes(  # noqa: N802
        self, request: admin_pb2.ListNodesRequest, _context: Context
    ) -> admin_pb2.ListNodesReply:
        """List the nodes of a network, or the one that is asked for."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        if request.node:
            found: Sequence[str] = [await self._parts.membership.find(view.name, request.node)]
        else:
            found = sorted(
                self._parts.mirror.held("nodes", view.name), key=lambda node_id: _sorting(view, node_id)
            )
        sightings, silent = await self._fleet.sightings(view.name, found[0] if request.node else "")
        nodes = [self._node_message(view, node_id, sightings.get(node_id, Sighting())) for node_id in found]
        unheard = [Problem(one.name, f"{one.reason}; its agents show as offline") for one in silent]
        return admin_pb2.ListNodesReply(
            nodes=nodes,
            revision=view.map.head.revision,
            problems=problem_messages([*self._store_problems(view), *unheard]),
        )

    async def RemoveNode(  # noqa: N802
        self, request: admin_pb2.RemoveNodeRequest, _context: Context
    ) -> admin_pb2.RemoveNodeReply:
        """Take a node out of its network."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        try:
            node_id = await self._parts.membership.find(view.name, request.node)
        except NotFoundError:
            if done := await self._parts.audit.done():
                return admin_pb2.RemoveNodeReply(node=removed_node(done), revision=done.revision)
            raise
        node = self._node_message(view, node_id)
        revision = await self._parts.revocations.remove(view.name, node_id)
        return admin_pb2.RemoveNodeReply(node=node, revision=revision)

    async def RevokeNode(  # noqa: N802
        self, request: admin_pb2.RevokeNodeRequest, _context: Context
    ) -> admin_pb2.RevokeNodeReply:
        """Take a node out, and its key for good."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        revoked = await self._parts.revocations.revoke(
            view.name, request.node, request.reason, unknown=request.unknown
        )
        # When this is a repetition, the first one has taken it out.
        done = await self._parts.audit.done()
        was_member = done.deed.what == "node revoked" if done else revoked.was_member
        return admin_pb2.RevokeNodeReply(
            revocation=_revocation_message(revoked.revocation),
            revision=revoked.revision,
            was_member=was_member,
        )

    async def ListRevocations(  # noqa: N802
        self, request: admin_pb2.ListRevocationsRequest, _context: Context
    ) -> admin_pb2.ListRevocationsReply:
        """List the nodes that were taken out of a network, the last one first."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        return admin_pb2.ListRevocationsReply(
            revocations=map(_revocation_message, self._parts.revocations.known(view.name)),
            revision=view.map.head.revision,
        )

    async def AddPeer(self, request: admin_pb2.AddPeerRequest, _context: Context) -> admin_pb2.AddPeerReply:  # noqa: N802
        """Make a stock WireGuard peer a member."""
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        endpoints = tuple(map(endpoint_value, request.endpoints))
        added = await self._parts.peers.add(view.name, request.name, request.public_key, endpoints)
        return admin_pb2.AddPeerReply(
            node=self._node_message(view, added.node_id),
            revision=added.revision,
            already_member=added.already_member,
        )

    def _store_problems(self, view: NetworkView) -> list[Problem]:
        """Return what is wrong with the store, besides the records of its nodes."""
        nodes = self._parts.mirror.held("nodes", view.name)
        refused = [Problem(key, why) for key, why in sorted(view.refused.items()) if owner(key) not in nodes]
        return [*refused, *self._parts.mirror.notices.of(view.name)]

    def _node_message(
        self, view: NetworkView, node_id: str, sighting: Sighting | None = None
    ) -> admin_pb2.Node:
        sighting = sighting or self._parts.agents.sighting(view.name, node_id)
        health = self._parts.presence.health(Identity(view.name, node_id))
        message = admin_pb2.Node(
            id=node_id,
            network=view.name,
            online=sighting.online,
            last_seen=int(sighting.last_seen),
            acked_revision=sighting.acked,
            in_step=sighting.in_step,
            backend=health.backend,
            backend_reason=health.backend_reason,
            mtu=health.mtu,
            version=sighting.version,
            problems=problem_messages([*_unreadable(view, node_id), *sighting.problems]),
        )
        message.MergeFrom(_record_fields(view, node_id))
        message.MergeFrom(self._parts.clones.message(view.name, node_id))
        return message

    # Networks.

    async def CreateNetwork(  # noqa: N802
        self, request: admin_pb2.CreateNetworkRequest, _context: Context
    ) -> admin_pb2.CreateNetworkReply:
        """Make a network; sealed unless asked otherwise."""
        view = await self._parts.membership.create_network(
            request.name, request.ranges, _mode(request.mode), request.mtu
        )
        return admin_pb2.CreateNetworkReply(network=self._network_message(view))

    async def ListNetworks(  # noqa: N802
        self, _request: admin_pb2.ListNetworksRequest, _context: Context
    ) -> admin_pb2.ListNetworksReply:
        """List all networks."""
        networks = [self._network_message(view) for view in self._parts.mirror.networks]
        return admin_pb2.ListNetworksReply(networks=networks)

    def _network_message(self, view: NetworkView) -> admin_pb2.Network:
        message = admin_pb2.Network(
            name=view.name,
            revision=view.map.head.revision,
            nodes=len(self._parts.mirror.held("nodes", view.name)),
        )
        if view.usable:
            network = view.network
            message.number = network.number
            message.ranges.extend(str(cidr) for cidr in network.ranges)
            message.MergeFrom(admin_pb2.Network(mode=mesh_pb2.Mode.Name(network.mode)))
            message.mtu = network.mtu
        return message

    # Convergence.

    async def Wait(self, request: admin_pb2.WaitRequest, _context: Context) -> admin_pb2.WaitReply:  # noqa: N802
        """Return when every connected agent holds the map as of a revision of the store, or time is up."""
        deadline = time.monotonic() + request.timeout_ms / 1000
        if not request.revision:
            await self._parts.contact.all_known(request.timeout_ms / 1000)
        view = self._parts.mirror.view(request.network or DEFAULT_NETWORK)
        revision = request.revision or view.map.head.revision
        return await self._fleet.wait(view.name, revision, max(0.0, deadline - time.monotonic()))

    async def ListControllers(  # noqa: N802
        self, _request: admin_pb2.ListControllersRequest, _context: Context
    ) -> admin_pb2.ListControllersReply:
        """List the controllers that are in the map."""
        return admin_pb2.ListControllersReply(controllers=await self._fleet.controllers())


def _mode(number: int) -> Mode:
    try:
        return Mode(number or Mode.SEALED)
    except ValueError:
        known = " or ".join(mode.name.lower() for mode in Mode)
        raise InvalidError(f"mode {number} is not one that this version knows", f"use {known}") from None


def _token_message(token: Token) -> admin_pb2.Token:
    return admin_pb2.Token(
        id=token.id,
        network=token.network,
        expires=token.expires,
        uses_left=token.uses_left,
        unlimited=not token.uses,
        revoked=token.revoked,
        tags=token.tags,
        created=token.created,
        approval=token.approval,
    )


def _record_fields(view: NetworkView, node_id: str) -> admin_pb2.Node:
    """Return what the signed records say, as far as they can be used."""
    message = admin_pb2.Node()
    node, places = view.node(node_id), view.endpoints(node_id)
    if node:
        message.name = node.name
        message.public_key = node.public_key
        message.addresses.extend(str(address) for address in node.addresses)
        message.routes.extend(str(cidr) for cidr in node.routes)
        message.tags.extend(node.tags)
        message.serial = node.serial
        message.not_after = node.not_after
        message.MergeFrom(
            admin_pb2.Node(
                kind=mesh_pb2.Kind.Name(node.kind),
                suites=[mesh_pb2.Suite.Name(suite) for suite in node.suites],
            )
        )
    if places:
        message.lanes = places.lanes
        message.endpoints.extend(endpoint_message(endpoint) for endpoint in places.endpoints)
    return message


def _revocation_message(revocation: Revocation) -> admin_pb2.Revocation:
    return admin_pb2.Revocation(
        node_id=revocation.node_id,
        network=revocation.network,
        name=revocation.name,
        revoked_serial=revocation.revoked_serial,
        banned=revocation.banned,
        not_after=revocation.not_after,
        reason=revocation.reason,
        at=revocation.serial // 1000,
    )


def _unreadable(view: NetworkView, node_id: str) -> list[Problem]:
    refused = ((key, view.refused.get(key)) for key in (node_key(node_id), endpoints_key(node_id)))
    return [Problem(key, f"unreadable record: {reason}") for key, reason in refused if reason]


def _sorting(view: NetworkView, node_id: str) -> tuple[str, str]:
    node = view.node(node_id)
    return (node.name if node else "", node_id)
