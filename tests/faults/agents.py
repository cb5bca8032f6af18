"""Agents without hosts: the real stream, the real replica, the real files; each map is written down."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio

from overmesh.agent.calls import channel
from overmesh.agent.peermap import Replica
from overmesh.agent.state import Identity, StateDir
from overmesh.agent.sync import Sync
from overmesh.errors import InvalidError, OvermeshError
from overmesh.model import Problem
from overmesh.proto import mesh_pb2, mesh_pb2_grpc
from overmesh.rpc import raised
from tests.faults.history import OK, REFUSED, UNKNOWN, Call, Held, Recorder
from tests.faults.wire import PATIENCE, TIMEOUT


class Follower:
    """An agent that follows the controllers and keeps the map, and that is all."""

    def __init__(self, identity: Identity, directory: Path, recorder: Recorder) -> None:
        self.identity = identity
        self.name = identity.membership.name
        self.known = identity.membership.controllers
        self._recorder = recorder
        self._state = StateDir(directory / self.name)
        with self._state.locked():
            pass  # makes the directory
        self._items: Mapping[str, bytes] = {}
        self._start()

    def _start(self) -> None:
        mine = self.identity.membership
        self._replica = Replica(self.identity.roots, mine.network, mine.node_id, mine.node, self._state.map())
        self.sync = Sync(self.identity, self.name, self._replica, self._state, self._apply)
        self._task = asyncio.create_task(self.sync.run())

    async def restart(self) -> None:
        """Begin anew from what is on disk, as after a crash."""
        await self.stop()
        self._start()

    async def stop(self) -> None:
        """End it; raise what it had ended with by itself."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _apply(self) -> Sequence[Problem]:
        held = self._replica.held()
        before, self._items = self._items, held.items
        changed = {key: signed for key, signed in held.items.items() if before.get(key) != signed}
        problems = self._replica.view(time.time()).problems
        self._recorder.held(
            Held(
                at=time.monotonic(),
                who=self.name,
                revision=held.revision,
                digest=self._replica.digest.to_bytes().hex(),
                joined={_node(key): _addresses(changed[key]) for key in changed if _is(key, "node")},
                moved={_node(key): _places(changed[key]) for key in changed if _is(key, "endpoints")},
                gone=tuple(_node(key) for key in before.keys() - held.items.keys() if _is(key, "node")),
                refused={problem.subject: problem.reason for problem in problems},
            )
        )
        return ()


def _is(key: str, kind: str) -> bool:
    return key.startswith(f"{kind}/")


def _node(key: str) -> str:
    return key.partition("/")[2]


def _addresses(signed: bytes) -> tuple[str, ...]:
    return tuple(mesh_pb2.NodeRecord.FromString(mesh_pb2.Signed.FromString(signed).body).addresses)


def _places(signed: bytes) -> tuple[str, ...]:
    record = mesh_pb2.EndpointsRecord.FromString(mesh_pb2.Signed.FromString(signed).body)
    return tuple(f"{endpoint.address}:{endpoint.port}" for endpoint in record.endpoints)


class Reporting:
    """What an agent says of where it is: another place each time, to the controller that it follows."""

    def __init__(self, follower: Follower, recorder: Recorder, chance: random.Random) -> None:
        self._follower = follower
        self._recorder = recorder
        self._random = chance
        self._ports = itertools.count(10_000)

    async def move(self) -> None:
        """Be somewhere else, and say so until it is confirmed, as agents do; after a while, give up."""
        here = mesh_pb2.Endpoint(address="198.51.100.1", port=next(self._ports))
        node, places = self._follower.identity.membership.node_id, [f"{here.address}:{here.port}"]
        recording = self._recorder.call(self._follower.name, "report", node=node, places=places)
        with recording as call, suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._report(here, call)
                while call.outcome == UNKNOWN:
                    await asyncio.sleep(self._random.random())
                    await self._report(here, call)

    async def _report(self, here: mesh_pb2.Endpoint, call: Call) -> None:
        """Say it once, to the controller that the agent follows now, as the run of it that there is now."""
        sync = self._follower.sync
        call.controller = sync.contact.address or self._follower.known[0]
        request = mesh_pb2.ReportRequest(
            endpoints=[here], host_id=self._follower.name, instance=sync.instance, lanes=1
        )
        try:
            reply = await self._told(request, call.controller)
        except InvalidError as error:
            call.outcome, call.error = REFUSED, str(error)
        except OvermeshError as error:
            call.error = str(error)
        else:
            call.outcome, call.said["revision"] = OK, reply.revision

    async def _told(self, request: mesh_pb2.ReportRequest, address: str) -> mesh_pb2.ReportReply:
        async with channel(self._follower.identity, address) as open_channel:
            stub: Any = mesh_pb2_grpc.MeshStub(open_channel)  # type: ignore[no-untyped-call]
            try:
                reply: mesh_pb2.ReportReply = await stub.Report(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                raise raised(error, f"controller {address}") from None
        return reply
