"""What meshctl asks about the mesh root."""

from typing import Any

import grpc.aio

from overmesh.controller.fleet import Fleet
from overmesh.controller.parts import Parts
from overmesh.controller.rotation.roots import Rotation
from overmesh.errors import NotFoundError
from overmesh.proto import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Rotating(admin_pb2_grpc.AdminServicer):
    """The part of the admin service that rotates the mesh root; each step answers where the mesh stands."""

    _parts: Parts
    _fleet: Fleet
    _rotation: Rotation

    async def ShowRoots(  # noqa: N802
        self, _request: admin_pb2.ShowRootsRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Tell where the mesh stands."""
        return await self._roots_state()

    async def StageRoot(  # noqa: N802
        self, _request: admin_pb2.StageRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Make the next root."""
        await self._rotation.stage()
        return await self._roots_state()

    async def ActivateRoot(  # noqa: N802
        self, request: admin_pb2.ActivateRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Have the next root sign."""
        await self._rotation.activate(force=request.force)
        return await self._roots_state()

    async def RetireRoot(  # noqa: N802
        self, request: admin_pb2.RetireRootRequest, _context: Context
    ) -> admin_pb2.RootsState:
        """Have nobody trust the old root."""
        try:
            await self._rotation.retire(force=request.force)
        except NotFoundError:
            # The answer to the same request was lost.
            if not await self._parts.audit.done():
                raise
        return await self._roots_state()

    async def _roots_state(self) -> admin_pb2.RootsState:
        rotation, left = self._rotation, list(self._rotation.members_left())
        online = {network: await self._online(network) for network in {network for network, _ in left}}
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
            agents=await rotation.agents_behind(),
            members=[
                admin_pb2.RootsState.Member(
                    network=network, name=node.name, id=node.id, online=node.id in online[network]
                )
                for network, node in left
            ],
            records=rotation.records_left,
            tokens=rotation.tokens_void(),
        )

    async def _online(self, network: str) -> set[str]:
        found, _ = await self._fleet.sightings(network)
        return {node_id for node_id, sighting in found.items() if sighting.online}
