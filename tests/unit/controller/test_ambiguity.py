"""When the store's answer is lost: the same request again has one result, whatever became of the first one.

Whole controllers, over gRPC, on a store that loses answers to changes of membership: before they are
carried out, after, or so that they are carried out only when the caller has already asked again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overmesh import rpc
from overmesh.controller import daemon
from overmesh.controller.daemon import running
from overmesh.controller.store import keys, open_store
from overmesh.controller.store.base import Compare, Op, Store, TxnResult
from overmesh.errors import StoreUnavailableError
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import Host, client, config, x25519_public_key
from tests.unit.controller.store.backends import EtcdBackend
from tests.unit.controller.test_watch import World


class Fault(Enum):
    """What becomes of a transaction whose answer is lost."""

    NEVER = "it is not carried out"
    DONE = "it was carried out"
    BEFORE_NEXT = "it is carried out right before the next one"
    AFTER_NEXT = "it is carried out right after the next one"


class LossyStore:
    """A store that loses the answers to the next changes of membership, as `faults` says."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._early: list[tuple[Sequence[Compare], Sequence[Op]]] = []
        self._late: list[tuple[Sequence[Compare], Sequence[Op]]] = []
        self.faults: Iterator[Fault] = iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if not any(op.key.startswith(keys.AUDIT) for op in ops):
            return await self._store.txn(compares, ops)
        await self._carry_out(self._early)
        fault, late = next(self.faults, None), self._late
        self._late = []
        try:
            match fault:
                case None:
                    return await self._store.txn(compares, ops)
                case Fault.DONE:
                    await self._store.txn(compares, ops)
                case Fault.BEFORE_NEXT:
                    self._early.append((compares, ops))
                case Fault.AFTER_NEXT:
                    self._late.append((compares, ops))
        finally:
            await self._carry_out(late)
        raise StoreUnavailableError("the answer was lost: it may or may not have happened", "try again")

    async def _carry_out(self, waiting: list[tuple[Sequence[Compare], Sequence[Op]]]) -> None:
        while waiting:
            await self._store.txn(*waiting.pop())

    async def settle(self) -> None:
        """Carry out what is still on its way."""
        await self._carry_out(self._early)
        await self._carry_out(self._late)


@asynccontextmanager
async def lossy(path: Path, target: str) -> AsyncIterator[tuple[World, LossyStore]]:
    stores: list[LossyStore] = []

    def opened(name: str) -> Any:
        stores.append(LossyStore(open_store(name)))
        return stores[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "open_store", opened)
        settings = config(path, store=target)
        async with running(settings) as controller, client(settings, controller) as talking:
            yield World(controller, talking), stores[0]


async def persisted(method: Callable[..., Any], request: Any) -> Any:
    """Ask as meshctl and the agent do: again, as the same request, until there is an answer."""
    metadata = ((rpc.REQUEST_ID, rpc.request_id()),)
    while True:
        try:
            return await method(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


class People:
    """What operators and hosts do; each step says what it did, and the world is checked against it."""

    def __init__(self, world: World, store: LossyStore) -> None:
        self.world = world
        self.store = store
        self.admin = world.client.admin
        self.numbers = count()
        self.members: dict[str, str] = {}
        self.left: dict[str, Callable[..., Any]] = {}
        self.joined = 0
        self.entries = 1  # the default network
        self.token = JoinToken("", b"", b"")

    async def create_token(self) -> None:
        reply = await persisted(self.admin.CreateToken, admin_pb2.CreateTokenRequest(uses=100))
        if not self.token.id:
            self.token = JoinToken.parse(reply.secret_token)
        assert reply.token.uses_left == 100

    async def join(self) -> None:
        host = Host(f"n{next(self.numbers)}")
        reply = await persisted(self.world.client.join.Join, host.request(self.token))
        self.members[host.id] = host.name
        self.left[host.id] = self.world.client.mesh(host, reply.certificate).Leave
        self.joined += 1

    async def join_with_approval(self) -> None:
        host = Host(f"n{next(self.numbers)}")
        created = await persisted(self.admin.CreateToken, admin_pb2.CreateTokenRequest(uses=1, approval=True))
        token = JoinToken.parse(created.secret_token)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await persisted(self.world.client.join.Join, host.request(token))
        assert "waits for approval" in str(raised.value.details())
        await persisted(self.admin.ApproveNode, admin_pb2.DecideRequest(node=host.name))
        await persisted(self.world.client.join.Join, host.request(token))
        self.members[host.id] = host.name
        self.entries += 3

    async def add_peer(self) -> None:
        request = admin_pb2.AddPeerRequest(name=f"p{next(self.numbers)}", public_key=x25519_public_key())
        reply = await persisted(self.admin.AddPeer, request)
        assert not reply.already_member
        self.members[reply.node.id] = request.name

    async def remove(self) -> None:
        await self.join()
        node_id, name = self.members.popitem()
        reply = await persisted(self.admin.RemoveNode, admin_pb2.RemoveNodeRequest(node=name))
        assert (reply.node.id, reply.node.name) == (node_id, name)
        assert reply.revision <= self.world.controller.mirror.revision
        self.entries += 1

    async def leave(self) -> None:
        await self.join()
        node_id, _ = self.members.popitem()
        await persisted(self.left[node_id], mesh_pb2.LeaveRequest())
        self.entries += 1

    async def revoke_node(self) -> None:
        await self.join()
        node_id, name = self.members.popitem()
        reply = await persisted(self.admin.RevokeNode, admin_pb2.RevokeNodeRequest(node=name))
        assert (reply.revocation.node_id, reply.was_member) == (node_id, True)
        self.entries += 1

    async def create_network(self) -> None:
        name = f"net{next(self.numbers)}"
        reply = await persisted(self.admin.CreateNetwork, admin_pb2.CreateNetworkRequest(name=name))
        assert reply.network.name == name

    async def revoke(self) -> None:
        reply = await persisted(self.admin.CreateToken, admin_pb2.CreateTokenRequest())
        await persisted(self.admin.RevokeToken, admin_pb2.RevokeTokenRequest(id=reply.token.id))
        self.entries += 1

    async def do(self, step: str) -> None:
        self.entries += 1
        await getattr(self, step)()

    async def check(self) -> None:
        """Compare the world with what its people were told."""
        await self.store.settle()
        mirror = self.world.controller.mirror
        await persisted(self.admin.CreateToken, admin_pb2.CreateTokenRequest())  # the mirror has all of it
        assert set(mirror.held("nodes", "mesh")) == set(self.members)
        names = {kv.value.decode(): name for name, kv in mirror.held("names", "mesh").items()}
        assert names == self.members
        assert len(mirror.held("addresses", "mesh")) == 2 * len(self.members)
        assert not mirror.held("pending", "mesh")
        tokens = await self.admin.ListTokens(admin_pb2.ListTokensRequest())
        (mine,) = [token for token in tokens.tokens if token.id == self.token.id]
        assert mine.uses_left == 100 - self.joined
        entries = [entry async for entry in self.admin.ListAudit(admin_pb2.AuditRequest())]
        assert len(entries) == self.entries + 1
        assert all(entry.genuine for entry in entries)


STEPS = (
    "create_token",
    "join",
    "join_with_approval",
    "add_peer",
    "remove",
    "leave",
    "revoke_node",
    "create_network",
    "revoke",
)


async def play(target: str, path: Path, steps: Sequence[str], faults: Sequence[Fault | None]) -> None:
    async with lossy(path, target) as (world, store):
        people = People(world, store)
        store.faults = iter(())
        await people.do("create_token")
        # None stands for a transaction that goes well; the last ones all do.
        store.faults = iter(faults)  # type: ignore[arg-type]
        for step in steps:
            await people.do(step)
        store.faults = iter(())
        await people.check()


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6),
    faults=st.lists(st.one_of(st.none(), st.sampled_from(Fault)), max_size=20),
)
def test_whatever_becomes_of_a_transaction_its_request_has_one_result(
    kind: str, steps: list[str], faults: list[Fault | None]
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory)
        target = f"sqlite:{path / 'store.db'}" if kind == "sqlite" else EtcdBackend(path).target
        asyncio.run(play(target, path, steps, faults))


async def test_what_is_done_late_while_a_node_leaves_again(tmp_path: Path) -> None:
    """The second attempt loses against the first one, and finds the node gone."""
    await play(f"sqlite:{tmp_path / 'store.db'}", tmp_path, ["leave"], [None, Fault.BEFORE_NEXT])


@pytest.mark.parametrize("step", STEPS)
async def test_each_fault_in_each_step(step: str, tmp_path: Path) -> None:
    faults = [fault for fault in Fault for _ in range(2)]
    await play(f"sqlite:{tmp_path / 'store.db'}", tmp_path, [step] * 4, faults)
