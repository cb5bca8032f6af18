import asyncio
import urllib.request
from pathlib import Path

import grpc.aio
import pytest

from overmesh.controller.daemon import running
from overmesh.proto import mesh_pb2
from tests.etcd import free_port
from tests.unit.controller.lab import Host, client, config


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def test_a_join_and_a_stream_are_seen(tmp_path: Path) -> None:
    port = free_port()
    settings = config(tmp_path, metrics=f"127.0.0.1:{port}")
    async with running(settings) as controller, client(settings, controller) as talking:
        host = Host("a")
        token = await talking.token()
        mesh = await talking.joined(host, token)
        await talking.joined(host, token)
        with pytest.raises(grpc.aio.AioRpcError):
            await talking.join.Join(Host("b").request(token, token_secret="wrong"))
        stream = mesh.Watch()
        await stream.write(mesh_pb2.WatchRequest(hello=mesh_pb2.Hello(host_id="m")))
        snapshot = (await stream.read()).snapshot
        behind = await asyncio.to_thread(scraped, port)
        ack = mesh_pb2.Ack(revision=snapshot.revision, digest=snapshot.digest)
        await stream.write(mesh_pb2.WatchRequest(ack=ack))
        await mesh.Leave(mesh_pb2.LeaveRequest())
        found = await asyncio.to_thread(scraped, port)

    assert behind['overmesh_agents_behind{network="mesh"}'] == 1
    assert behind['overmesh_agent_lag_revisions{network="mesh"}'] == snapshot.revision
    assert behind['overmesh_nodes{network="mesh"}'] == behind['overmesh_agents{network="mesh"}'] == 1
    assert found['overmesh_nodes{network="mesh"}'] == 0
    assert found['overmesh_joins_total{result="new"}'] == 1
    assert found['overmesh_joins_total{result="again"}'] == 1
    assert found['overmesh_joins_total{result="TokenError"}'] == 1
    assert found['overmesh_calls_total{method="Leave",result="ok"}'] == 1
    assert found['overmesh_snapshots_sent_total{network="mesh"}'] == 1
    assert found['overmesh_acks_total{network="mesh"}'] == 1
    assert found["overmesh_ack_seconds_count"] == 1
    assert found['overmesh_store_seconds_count{operation="txn",result="ok"}'] > 3
    assert found["overmesh_controllers"] == 1
