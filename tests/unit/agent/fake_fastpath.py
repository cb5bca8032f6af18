"""A fastpath that carries nothing: the control socket's contract, in a process that can be killed."""

# ruff: noqa: N802
import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from overmesh.proto import fastpath_pb2, fastpath_pb2_grpc


class Fake(fastpath_pb2_grpc.FastpathServicer):
    def __init__(self, no_offload: str) -> None:
        self.offloads = [
            fastpath_pb2.Offload(name=name, unwanted=name in no_offload.split(",")) for name in ("tso", "uso")
        ]
        self.applied = fastpath_pb2.ApplyRequest()
        self.changes = 0
        self.ended = asyncio.Event()

    async def Apply(self, request: fastpath_pb2.ApplyRequest, context: Any) -> fastpath_pb2.ApplyReply:
        if request.tun == "refused":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no interface refused")
        changed, self.applied = request != self.applied, request
        return fastpath_pb2.ApplyReply(
            revision=request.revision,
            peers=len(request.peers),
            changed=changed,
            table_digest=self.digest,
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.applied.SerializeToString(deterministic=True)).digest()

    async def Change(self, request: fastpath_pb2.ChangeRequest, context: Any) -> fastpath_pb2.ApplyReply:
        if request.base != self.digest:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not what is applied")
        self.changes += 1
        peers = {peer.id: peer for peer in (*self.applied.peers, *request.desired.peers)}
        desired = fastpath_pb2.ApplyRequest()
        desired.CopyFrom(request.desired)
        del desired.peers[:]
        desired.peers.extend(peer for name, peer in peers.items() if name not in request.removed)
        return await self.Apply(desired, context)

    async def Stats(self, request: fastpath_pb2.StatsRequest, context: Any) -> fastpath_pb2.StatsReply:
        return fastpath_pb2.StatsReply(
            revision=self.applied.revision,
            backend="fake",
            pid=os.getpid(),
            version="0",
            backend_reason=f"{self.changes} changes, {len(self.applied.peers)} peers",
            offloads=self.offloads,
            table_digest=self.digest,
        )

    async def Events(
        self, request: fastpath_pb2.EventsRequest, context: Any
    ) -> AsyncIterator[fastpath_pb2.Event]:
        yield fastpath_pb2.Event(started=fastpath_pb2.Started(pid=os.getpid()))
        await asyncio.Event().wait()

    async def Probe(self, request: fastpath_pb2.ProbeRequest, context: Any) -> fastpath_pb2.ProbeReply:
        await asyncio.sleep(10 if request.peer == "slow" else 0)
        return fastpath_pb2.ProbeReply(answered=True, rtt_ns=request.timeout_ms, endpoint="192.0.2.2:6081")

    async def Shutdown(
        self, request: fastpath_pb2.ShutdownRequest, context: Any
    ) -> fastpath_pb2.ShutdownReply:
        self.ended.set()
        return fastpath_pb2.ShutdownReply()


class Earlier(Fake):
    """One that knows no changes."""

    async def Apply(self, request: fastpath_pb2.ApplyRequest, context: Any) -> fastpath_pb2.ApplyReply:
        reply = await super().Apply(request, context)
        reply.ClearField("table_digest")
        return reply

    async def Change(self, request: fastpath_pb2.ChangeRequest, context: Any) -> fastpath_pb2.ApplyReply:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return fastpath_pb2.ApplyReply()


async def serve(socket: str, no_offload: str) -> None:
    fake = (Earlier if os.environ.get("EARLIER") else Fake)(no_offload)
    server = grpc.aio.server()
    fastpath_pb2_grpc.add_FastpathServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await fake.ended.wait()
    await server.stop(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--log-format", required=True)
    parser.add_argument("--no-offload", default="")
    given = parser.parse_args()
    Path(given.socket).unlink(missing_ok=True)
    asyncio.run(serve(given.socket, given.no_offload))


if __name__ == "__main__":
    main()
