"""Two controllers on a real etcd, and the mesh root rotated under them."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from overmesh import rpc
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.proto.roots import Roots
from tests.unit.controller.lab import Client, Host
from tests.unit.controller.store.backends import EtcdBackend
from tests.unit.controller.test_on_etcd import two_controllers
from tests.unit.controller.test_watch import Watcher


async def shown(talking: Client, true: Callable[[admin_pb2.RootsState], bool]) -> admin_pb2.RootsState:
    async with asyncio.timeout(20):
        while not true(now := await talking.admin.ShowRoots(admin_pb2.ShowRootsRequest())):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    state: admin_pb2.RootsState = now
    return state


def copy_next(path: Path) -> None:
    for name in ("root.next.pem", "root.next.key"):
        shutil.copy(path / "one" / "state" / name, path / "two" / "state" / name)


async def test_both_go_over_and_either_may_be_asked(tmp_path: Path) -> None:
    async with two_controllers(EtcdBackend(tmp_path).target, tmp_path) as [(first, one), (second, two)]:
        token = await one.token()
        host = Host("a")
        await one.joined(host, token)
        await one.admin.StageRoot(admin_pb2.StageRootRequest())
        state = await shown(two, lambda now: len(now.roots) == 2)
        assert [root.key_here for root in state.roots] == [True, False]
        with pytest.raises(grpc.aio.AioRpcError, match="lack the next root's key"):
            await one.admin.ActivateRoot(admin_pb2.ActivateRootRequest())
        with pytest.raises(grpc.aio.AioRpcError, match="is not on this controller"):
            await two.admin.ActivateRoot(admin_pb2.ActivateRootRequest())

        copy_next(tmp_path)
        await shown(one, lambda now: not now.controllers)
        await two.admin.ActivateRoot(admin_pb2.ActivateRootRequest())
        await shown(one, lambda now: not (now.records or now.controllers))
        assert first.root.fingerprint == second.root.fingerprint == first.mirror.roots.fingerprints[-1]
        assert list((await shown(one, lambda now: bool(now.tokens))).tokens) == [token.id]

        with pytest.raises(grpc.aio.AioRpcError, match="have not come over yet: a"):
            await one.admin.RetireRoot(admin_pb2.RetireRootRequest())
        both = Client(one.settings, first.mirror.roots.pem, one.join_port, one.mesh_port, one.channels)
        request = mesh_pb2.RenewRequest(network="mesh", node_id=host.id, csr=host.csr())
        await both.join.Renew(request)
        await shown(two, lambda now: not now.members)
        named = ((rpc.REQUEST_ID, rpc.request_id()),)
        for _ in range(2):  # the answer was lost
            await two.admin.RetireRoot(admin_pb2.RetireRootRequest(), metadata=named)
        with pytest.raises(grpc.aio.AioRpcError, match="there is no old root"):
            await two.admin.RetireRoot(admin_pb2.RetireRootRequest())
        for talking in (one, two):
            await shown(talking, lambda now: len(now.roots) == 1)
            files = talking.settings.state_dir
            async with asyncio.timeout(10):
                while sorted(file.name for file in files.glob("root*")) != ["root.key", "root.pem"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert first.mirror.roots == second.mirror.roots == Roots((first.root.certificate,))


async def test_a_controller_that_was_away_all_the_time(tmp_path: Path) -> None:
    target = EtcdBackend(tmp_path).target
    async with two_controllers(target, tmp_path) as [(_, one), (second, two)]:
        await one.joined(Host("a"))
        await one.admin.StageRoot(admin_pb2.StageRootRequest())
        await one.admin.ActivateRoot(admin_pb2.ActivateRootRequest(force=True))
        await shown(two, lambda now: now.roots[-1].state == "signs")
        before = second.root.fingerprint
        copy_next(tmp_path)
        await shown(two, lambda now: not now.controllers)
        assert second.root.fingerprint != before


async def test_an_agent_of_the_other_controller_that_has_not_heard_of_it_is_named(tmp_path: Path) -> None:
    async with two_controllers(EtcdBackend(tmp_path).target, tmp_path) as [(_, one), (_, two)]:
        watcher = await Watcher((await two.joined(Host("slow"))).Watch()).hello()
        await watcher.receive()
        await one.admin.StageRoot(admin_pb2.StageRootRequest())
        copy_next(tmp_path)
        await shown(one, lambda now: not now.controllers)
        with pytest.raises(grpc.aio.AioRpcError, match="have not heard of the next root: slow"):
            await one.admin.ActivateRoot(admin_pb2.ActivateRootRequest())
        await one.admin.ActivateRoot(admin_pb2.ActivateRootRequest(force=True))
        left = await shown(one, lambda now: bool(now.members))
        assert [(member.name, member.online) for member in left.members] == [("slow", True)]
