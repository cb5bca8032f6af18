"""What meshctl asks about the mesh root."""

from typing import Any

import grpc.aio

from overmesh.controller.mirror import Mirror
from overmesh.controller.roots import Rotation
from overmesh.controller.watch import Agents
from overmesh.proto import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Rotating(admin_pb2_grpc.AdminServicer):
    """The part of the admin service that rotates the mesh root; each step answers where the mesh stands."""

    _mirror: Mirror
    _agents: Agents
    _rotation: Rotation

    async def ShowRoots(  # noqa: N802
        self, _request: admin_pb2.ShowRootsRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Tell where the mesh stands."""
        return self._roots_state()

    async def StageRoot(  # noqa: N802
        self, _request: admin_pb2.StageRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Make the next root."""
        await self._rotation.stage()
        return self._roots_state()

    async def ActivateRoot(  # noqa: N802
        self, request: admin_pb2.ActivateRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Have the next root sign."""
        await self._rotation.activate(force=request.force)
        return self._roots_state()

    async def RetireRoot(  # noqa: N802
        self, request: admin_pb2.RetireRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Have nobody trust the old root."""
        await self._rotation.retire(force=request.force)
        return self._roots_state()

    def _roots_state(self) -> admin_pb2.RootsState:
        rotation = self._rotation
        return admin_pb2.RootsState(
            roots=[
                admin_pb2.MeshRoot(
                    fingerprint=root.fingerprint,
                    state=root.state,
                    not_after=root.not_after,
                    key_here=root.key_here,
                )
                for root in rotation.known()
            ],
            controllers=rotation.controllers_without(),
            agents=[
                admin_pb2.Behind(
                    name=self._name(network, behind.node_id),
                    acked_revision=behind.acked,
                    reason=behind.reason,
                )
                for network, behind in rotation.agents_behind()
            ],
            members=[
                admin_pb2.RootsState.Member(
                    network=network,
                    name=node.name,
                    id=node.id,
                    online=self._agents.sighting(network, node.id).online,
                )
                for network, node in rotation.members_left()
            ],
            records=rotation.records_left,
            tokens=rotation.tokens_void(),
        )

    def _name(self, network: str, node_id: str) -> str:
        node = self._mirror.view(network).node(node_id)
        return node.name if node else node_id
