"""Somebody has full write access to etcd and has kept all that was ever there; the rest is real.

They have neither the mesh root's key nor that of a member. docs/trust.md says what follows; here it is
played: what they put into the store, and what becomes of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from overmesh.agent import join as joins
from overmesh.config import AgentConfig, ControllerConfig
from overmesh.controller.daemon import Controller as Running
from overmesh.controller.daemon import running
from overmesh.controller.members.remembered import FILE
from overmesh.controller.store import keys, open_store
from overmesh.controller.store.base import Delete, Op, Put, Store
from overmesh.controller.trust import MeshRoot
from overmesh.errors import CloneError, OvermeshError, RevokedError, StoreCorruptError
from overmesh.model import (
    Controller,
    Endpoint,
    Mode,
    Node,
    NodeEndpoints,
    controller_key,
    endpoints_key,
    node_key,
)
from overmesh.proto import admin_pb2
from overmesh.token import JoinToken
from tests.unit.agent.conftest import RANGES, Mesh, host, joined
from tests.unit.agent.test_sync import FACTS, Member, following
from tests.unit.controller.store.backends import EtcdBackend

Content = dict[str, bytes]
EVIL = MeshRoot.new()


@dataclass
class Attacker:
    """Whoever has etcd."""

    store: Store

    async def read(self) -> Content:
        """Return the records and all that goes with them, but what says who is connected."""
        found = await self.store.range(keys.PREFIX)
        return {kv.key: kv.value for kv in found.kvs if not kv.lease}

    async def write(self, values: Mapping[str, bytes | None]) -> int:
        ops: list[Op] = [
            Put(key, value) if value is not None else Delete(key) for key, value in values.items()
        ]
        return (await self.store.txn([], ops)).revision

    async def roll_back(self, to: Content) -> int:
        """Make the store what it was, but for its revision, which nobody can take back."""
        now = await self.read()
        other = {key: value for key, value in to.items() if now.get(key) != value}
        return await self.write(dict.fromkeys(now.keys() - to.keys()) | other)


@dataclass
class World:
    """A mesh on etcd, its controller that can be stopped and started, and the attacker."""

    path: Path
    config: ControllerConfig
    attacker: Attacker
    controller: Running | None = None
    _up: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, *, forgetful: bool = False) -> None:
        """Start the controller; forgetful: on a new disk, with nothing but the root's key."""
        if forgetful:
            self.cache.unlink()
        self.controller = await self._up.enter_async_context(running(self.config))
        # The same port again, for the agents that know only this one.
        self.config = replace(self.config, mesh_port=self.controller.listening.mesh_port)

    async def stop(self) -> None:
        await self._up.aclose()

    @property
    def cache(self) -> Path:
        return self.config.state_dir / FILE

    @property
    def running(self) -> Running:
        assert self.controller
        return self.controller

    @property
    def mesh(self) -> Mesh:
        return Mesh(self.config, self.running)

    async def member(self, name: str) -> Member:
        """Return a host that has just joined."""
        config = host(self.path, name)
        await joined(self.mesh, config)
        return self.again(config)

    def again(self, config: AgentConfig) -> Member:
        member = Member(config)
        member.sync.report(FACTS)
        return member

    async def listed(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Return what `meshctl node list` shows: the problems of each node, and those of the store."""
        reply = await self.mesh.admin("ListNodes", admin_pb2.ListNodesRequest())
        nodes = {node.name or node.id: [problem.reason for problem in node.problems] for node in reply.nodes}
        return nodes, {problem.subject: problem.reason for problem in reply.problems}

    async def has(self, key: str) -> bool:
        return await self.attacker.store.get(key) is not None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    target = EtcdBackend(tmp_path).target
    config = ControllerConfig(
        state_dir=tmp_path / "controller",
        runtime_dir=tmp_path / "controller-run",
        listen="127.0.0.1",
        join_port=0,
        mesh_port=0,
        advertise=("127.0.0.1",),
        ranges=RANGES,
        store=target,
    )
    store = open_store(target)
    world = World(tmp_path, config, Attacker(store))
    await world.start()
    try:
        yield world
    finally:
        await world.stop()
        await store.close()


def node_id(member: Member) -> str:
    return member.identity.membership.node_id


def reasons(member: Member) -> dict[str, str]:
    return {problem.subject: problem.reason for problem in member.replica.view(0).problems}


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def in_step(world: World, *members: Member) -> AsyncIterator[None]:
    """Have these members follow the controller, and begin once they see each other."""
    async with following(*members):
        names = {member.identity.membership.name for member in members}
        await until(
            lambda: all({*member.peers, member.identity.membership.name} >= names for member in members)
        )
        yield


async def removed_with_all_that_it_had(world: World, name: str) -> Content:
    """Have the operator remove a node; return what the attacker has kept of it."""
    before = await world.attacker.read()
    await world.mesh.remove(name)
    after = await world.attacker.read()
    return {key: value for key, value in before.items() if after.get(key) != value}


# Making things up.


async def test_a_made_up_node(world: World) -> None:
    a = await world.member("a")
    async with in_step(world, a):
        node = Node("evil", "mesh", "evil", bytes(range(32)), (ip_address("10.213.6.6"),), not_after=1 << 40)
        where = NodeEndpoints("evil", "mesh", (Endpoint(ip_address("192.0.2.66"), 51820),))
        revision = await world.attacker.write(
            {keys.node("mesh", "evil"): EVIL.sign(node), keys.endpoints("mesh", "evil"): EVIL.sign(where)}
        )
        await until(lambda: a.replica.revision >= revision)
        why = "not signed by this mesh's root"
        assert (a.peers, reasons(a)) == ([], {"node/evil": why, "endpoints/evil": why})
        assert "evil" in (await world.listed())[0]
        await world.mesh.admin("RemoveNode", admin_pb2.RemoveNodeRequest(node="evil"))
        await until(lambda: reasons(a) == {})


async def test_where_one_node_is_said_of_another(world: World) -> None:
    a, b, c = [await world.member(name) for name in "abc"]
    async with in_step(world, a, b, c):
        await until(lambda: all(peer.lanes == FACTS.lanes for peer in a.replica.view(0).map.peers))
        held = {peer.node.name: peer for peer in a.replica.view(0).map.peers}
        now = await world.attacker.read()
        swapped = {
            keys.endpoints("mesh", node_id(b)): now[keys.endpoints("mesh", node_id(c))],
            keys.node("mesh", node_id(b)): now[keys.node("mesh", node_id(c))],
        }
        await world.running.mirror.reached(await world.attacker.write(swapped))
        refused = world.running.mirror.view("mesh").refused
        assert refused[endpoints_key(node_id(b))] == (
            f"is the record of endpoints/{node_id(c)}, not of endpoints/{node_id(b)}"
        )
        assert (await world.listed())[0]["b"]
        d = await world.member("d")  # sees b as it was, too
        async with following(d):
            await until(lambda: sorted(d.peers) == ["a", "b", "c"])
        assert {peer.node.name: peer for peer in a.replica.view(0).map.peers if peer.node.name != "d"} == held


async def test_a_made_up_controller_draws_no_agent(world: World) -> None:
    a = await world.member("a")
    async with in_step(world, a):
        known = list(a.sync.controllers)
        evil = Controller("evil", ("192.0.2.66:7443",), ("192.0.2.66:7442",))
        revision = await world.attacker.write({keys.controller("evil"): EVIL.sign(evil)})
        await until(lambda: a.replica.revision >= revision)
        assert list(a.sync.controllers) == known
        assert reasons(a) == {controller_key("evil"): "not signed by this mesh's root"}


async def test_a_made_up_token_and_one_with_more_uses(world: World) -> None:
    made_up = JoinToken.new(world.running.root.public_key)
    fields = {"network": "mesh", "expires": 1 << 40, "uses": 0, "hash": made_up.secret_text}
    spent = await world.mesh.token(uses=1)
    await joins.join(host(world.path, "a"), world.mesh.join_port, spent, "a", lambda *_: None)
    key = keys.token(JoinToken.parse(spent).id)
    value, _, mac = (await world.attacker.read())[key].partition(b"\n")
    more = json.dumps(json.loads(value) | {"uses": 9}).encode()
    await world.running.mirror.reached(
        await world.attacker.write(
            {keys.token(made_up.id): json.dumps(fields).encode() + b"\n" + mac, key: more + b"\n" + mac}
        )
    )
    for token in (str(made_up), spent):
        with pytest.raises(StoreCorruptError, match="is not a token of this mesh"):
            await joins.join(host(world.path, "evil"), world.mesh.join_port, token, "evil", lambda *_: None)


async def test_the_credential_of_one_node_for_another(world: World) -> None:
    """With it the attacker's own TLS key would pass for that of b, whose X25519 key is no secret."""
    a, b = await world.member("a"), await world.member("b")
    now = await world.attacker.read()
    copied = {keys.credential("mesh", node_id(b)): now[keys.credential("mesh", node_id(a))]}
    await world.running.mirror.reached(await world.attacker.write(copied))
    with pytest.raises(OvermeshError) as raised:
        await joined(world.mesh, host(world.path, "b"))
    assert type(raised.value) in (CloneError, StoreCorruptError)


# Bringing things back.


@pytest.mark.parametrize("with_revocation", [True, False], ids=["beside its revocation", "in place of it"])
async def test_a_removed_node_put_back(world: World, with_revocation: bool) -> None:
    a, gone = await world.member("a"), await world.member("gone")
    async with in_step(world, a, gone):
        kept = await removed_with_all_that_it_had(world, "gone")
        assert keys.credential("mesh", node_id(gone)) in kept
        await until(lambda: gone.sync.contact.removed and a.peers == [])
        revocation = keys.revoked("mesh", node_id(gone))
        revision = await world.attacker.write(kept if with_revocation else kept | {revocation: None})
        await world.running.mirror.reached(revision)
        assert world.running.mirror.view("mesh").node(node_id(gone)) is None
        later = await world.member("later")
        async with following(later):
            await until(lambda: later.peers == ["a"] and a.peers == ["later"])
            # The store is put right again, and somebody says so.
            await until(lambda: world.has(revocation))
            await until(lambda: _is_absent(world, keys.node("mesh", node_id(gone))))
            assert (later.peers, a.peers, gone.peers) == (["a"], ["later"], [])
        assert gone.sync.contact.removed
        if not with_revocation:
            assert "the revocation of gone" in (await world.listed())[1]["records"]


async def _is_absent(world: World, key: str) -> bool:
    return not await world.has(key)


async def test_put_back_while_no_controller_ran(world: World) -> None:
    a, gone = await world.member("a"), await world.member("gone")
    async with in_step(world, a, gone):
        kept = await removed_with_all_that_it_had(world, "gone")
        await until(lambda: a.peers == [] and gone.sync.contact.removed)
    revocation = keys.revoked("mesh", node_id(gone))
    await world.stop()
    await world.attacker.write(kept | {revocation: None})
    await world.start()
    assert await world.has(revocation)
    assert not await world.has(keys.node("mesh", node_id(gone)))
    assert "the revocation of gone" in (await world.listed())[1]["records"]
    newcomer = await world.member("newcomer")
    async with following(newcomer):
        await until(lambda: newcomer.peers == ["a"])


async def test_a_controller_that_knows_nothing_is_told_by_an_agent(world: World) -> None:
    """The worst case: the revocation is gone from the store and the controller has a new disk."""
    a, gone = await world.member("a"), await world.member("gone")
    async with in_step(world, a, gone):
        kept = await removed_with_all_that_it_had(world, "gone")
        await until(lambda: a.peers == [] and gone.sync.contact.removed)
    await world.stop()
    revocation = keys.revoked("mesh", node_id(gone))
    await world.attacker.write(kept | {revocation: None})
    await world.start(forgetful=True)
    newcomer = await world.member("newcomer")
    async with following(newcomer):
        # Nobody who knows better is there: this is what signatures alone can't prevent.
        await until(lambda: sorted(newcomer.peers) == ["a", "gone"])
        async with following(a):
            await until(lambda: newcomer.peers == ["a"])
            await until(lambda: world.has(revocation))
            assert "gone" not in a.peers
            await until(lambda: a.replica.withheld(0) == {})


async def test_a_banned_key_is_refused_by_name_wherever_it_comes(world: World) -> None:
    a, thief = await world.member("a"), await world.member("thief")
    async with in_step(world, a, thief):
        before = await world.attacker.read()
        request = admin_pb2.RevokeNodeRequest(node="thief", reason="stolen")
        reply = await world.mesh.admin("RevokeNode", request)
        assert (reply.was_member, reply.revocation.banned, reply.revocation.reason) == (True, True, "stolen")
        await until(lambda: thief.sync.contact.removed and a.peers == [])
        assert "revoked for good" in thief.sync.contact.error
        with pytest.raises(RevokedError, match=r"the key of this host \(thief\) was revoked for good"):
            await joined(world.mesh, host(world.path, "thief"))
        await world.running.mirror.reached(await world.attacker.roll_back(before))
        with pytest.raises(RevokedError):
            await joined(world.mesh, host(world.path, "thief"))
        assert a.peers == []


# Taking things back.


async def test_an_older_network_and_one_of_another_mode(world: World) -> None:
    a = await world.member("a")
    root, network = world.running.root, world.running.mirror.view("mesh").network
    older = replace(network, ranges=(ip_network("10.66.0.0/16"),), mode=Mode.PLAIN, serial=network.serial - 1)
    async with in_step(world, a):
        key, genuine = keys.network("mesh"), (await world.attacker.read())[keys.network("mesh")]
        await world.attacker.write({key: root.sign(older)})
        await until(lambda: _is(world, key, genuine))
        assert a.replica.network == network
        assert world.running.mirror.view("mesh").network == network
        assert "older versions of, network" in (await world.listed())[1]["records"]


async def _is(world: World, key: str, value: bytes) -> bool:
    return (await world.attacker.read()).get(key) == value


async def test_everything_rolled_back(world: World) -> None:
    a, gone = await world.member("a"), await world.member("gone")
    async with in_step(world, a, gone):
        before = await world.attacker.read()
        await world.mesh.remove("gone")
        late = await world.member("late")
        late.sync.report(replace(FACTS, lanes=4))
        async with following(late):
            await until(lambda: a.peers == ["late"] and late.peers == ["a"])
            revision = await world.attacker.roll_back(before)
            await until(lambda: a.replica.revision >= revision)
            await until(lambda: world.has(keys.revoked("mesh", node_id(gone))))
            assert "gone" not in [*a.peers, *late.peers]
            # Whoever writes to the store can make a node go, but not unnoticed.
            why = "went from the map, and nothing says that it was taken out"
            assert reasons(a) == {node_key(node_id(late)): why}
            problems = (await world.listed())[1]
            assert problems[node_key(node_id(late))] == "late went, and nothing says that it was taken out"
            assert "the revocation of gone" in problems["records"]


async def test_a_whole_store_that_went_back(world: World) -> None:
    """As after `meshctl store import` of an old backup; the new etcd counts its revisions from 1."""
    a = await world.member("a")
    async with in_step(world, a):
        pass
    seen = a.replica.revision
    held = replace(a.replica.held(), revision=seen + 10_000_000, newest=seen + 10_000_000)
    await world.stop()
    await world.start()
    back = Member(host(world.path, "a"), held)
    async with following(back):
        await until(lambda: 0 < back.replica.revision < held.revision)
        assert reasons(back)["store"].startswith(
            f"the controllers' store went back from revision {held.revision} to {back.replica.revision}"
        )
        problems = (await world.listed())[1]
        assert problems["store"].startswith(f"went back from revision {held.revision} to ")
        assert problems["store"].endswith("(seen by a)")
