"""Who changed what: entered with the change itself, read back, forged, repeated, trimmed."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from overmesh import rpc
from overmesh.controller import audit as audit_module
from overmesh.controller.audit import Audit, Deed, Entry
from overmesh.controller.daemon import running
from overmesh.controller.mirror import Change
from overmesh.controller.serving.caller import address
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.token import JoinToken
from tests.unit.controller.lab import ROOT, START, Host, Mesh, client, config, mesh, x25519_public_key
from tests.unit.controller.test_watch import World


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = config(tmp_path)
    async with running(settings) as controller, client(settings, controller) as talking:
        yield World(controller, talking)


async def entries(lab: Mesh, since: float = 0) -> list[Entry]:
    return [entry async for entry in lab.audit.entries(since)]


async def told(world: World, **asked: Any) -> list[admin_pb2.AuditEntry]:
    return [entry async for entry in world.client.admin.ListAudit(admin_pb2.AuditRequest(**asked))]


async def test_a_change_and_its_entry_are_one_revision(lab: Mesh) -> None:
    host = await lab.joined("a")
    made, token, joined = await entries(lab)
    assert (made.deed.what, made.deed.network, made.who) == ("network created", "mesh", "controller")
    assert (token.deed.what, token.deed.details) == ("token created", {"uses": "any number"})
    assert joined.deed == Deed("node joined", "mesh", host.id, "a")
    assert (joined.who, joined.controller, joined.at_ms) == (
        f"token {token.deed.subject}",
        "c1",
        START * 1000,
    )
    kv = lab.mirror.key(keys.node("mesh", host.id))
    assert kv
    assert joined.revision == kv.mod_revision
    assert await lab.store.get(keys.audit(joined.id))


async def test_the_mirror_holds_no_entry(lab: Mesh) -> None:
    await lab.joined("a")
    await lab.mirror.load()
    assert not any(key.startswith(keys.AUDIT) for key in lab.mirror._kvs)


async def test_a_change_of_membership_without_an_account_is_entered_all_the_same(lab: Mesh) -> None:
    before = len(await entries(lab))
    await lab.mirror.change(lambda: Change([], [Put(keys.node("mesh", "x"), b"?")]))
    assert (await entries(lab))[before].deed == Deed("nodes written", "mesh", "x")
    await lab.mirror.change(lambda: Change([], [Put(keys.endpoints("mesh", "x"), b"?")]))
    assert len(await entries(lab)) == before + 1


# What each call leaves; a new one belongs here, or below.
CHANGES = {
    "CreateNetwork": "network created",
    "CreateToken": "token created",
    "RevokeToken": "token revoked",
    "AddPeer": "peer added",
    "RemoveNode": "node removed",
    "RevokeNode": "node revoked",
    "ApproveNode": "node approved",
    "DenyNode": "node denied",
    "Join": "node joined",
    "Rotate": "node keys changing",
    "Leave": "node removed",
    "StageRoot": "next root staged",
    "ActivateRoot": "next root activated",
    "RetireRoot": "old root retired",
}
# Watch: tested with clones, of which it makes entries. Renew: prolongs a membership twice in its time.
CHANGE_NOTHING = {
    "ListTokens", "ListNodes", "ListRevocations", "ListPending", "ListAudit", "ListNetworks",
    "ListControllers",
    "ShowRoots", "Wait", "Watch", "Report", "Renew", "Roots", "Head",
}  # fmt: skip


def test_every_call_is_known_for_what_it_changes() -> None:
    services = [
        *admin_pb2.DESCRIPTOR.services_by_name.values(),
        *mesh_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    assert {
        method.name for service in services for method in service.methods
    } == CHANGES.keys() | CHANGE_NOTHING


async def test_every_call_that_changes_who_is_in_leaves_its_entry(world: World) -> None:
    admin, join = world.client.admin, world.client.join
    called: list[str] = []

    async def call(stub: Any, method: str, request: Any) -> Any:
        before = len(await told(world))
        reply = await getattr(stub, method)(request)
        new = (await told(world))[before:]
        assert CHANGES[method] in [entry.what for entry in new], method
        assert all(entry.genuine and entry.who != "host" for entry in new)
        called.append(method)
        return reply

    await call(admin, "CreateNetwork", admin_pb2.CreateNetworkRequest(name="blue"))
    token = JoinToken.parse((await call(admin, "CreateToken", admin_pb2.CreateTokenRequest())).secret_token)
    for method, name in (("ApproveNode", "x"), ("DenyNode", "y")):
        with pytest.raises(grpc.aio.AioRpcError, match="waits for approval"):
            await join.Join(Host(name).request(await world.client.token(approval=True)))
        await call(admin, method, admin_pb2.DecideRequest(node=name))
    host = Host("a")
    reply = await call(join, "Join", host.request(token))
    new = replace(host, public_key=x25519_public_key(), tls=generate_private_key(SECP256R1()))
    rotation = mesh_pb2.RotateRequest(
        public_key=new.public_key, previous_public_key=host.public_key, csr=new.csr()
    )
    await call(world.client.mesh(host, reply.certificate), "Rotate", rotation)
    leaver = await world.client.joined(Host("b"), token)
    await call(leaver, "Leave", mesh_pb2.LeaveRequest())
    for method in ("RemoveNode", "RevokeNode"):
        await call(admin, "AddPeer", admin_pb2.AddPeerRequest(name="phone", public_key=x25519_public_key()))
        request = getattr(admin_pb2, f"{method}Request")
        await call(admin, method, request(node="phone"))
    await call(admin, "RevokeToken", admin_pb2.RevokeTokenRequest(id=token.id))
    await call(admin, "StageRoot", admin_pb2.StageRootRequest())
    await call(admin, "ActivateRoot", admin_pb2.ActivateRootRequest(force=True))
    await call(admin, "RetireRoot", admin_pb2.RetireRootRequest(force=True))
    assert set(called) == CHANGES.keys()
    entries = await told(world)
    assert all(entry.genuine for entry in entries), "those from before the rotation, too"
    assert [entry.revision for entry in entries] == sorted(entry.revision for entry in entries)
    assert {entry.who.partition(" ")[0] for entry in entries} == {"controller", "operator", "token", "node"}
    assert {getattr(entry, "from") for entry in entries} == {"", "127.0.0.1", "this host"}


async def test_what_concerns_one_node(world: World) -> None:
    host = Host("a")
    node = await world.client.joined(host)
    await world.client.joined(Host("b"))
    await node.Leave(mesh_pb2.LeaveRequest())
    for named in ("a", host.id):
        assert [entry.what for entry in await told(world, node=named)] == ["node joined", "node removed"]


async def test_following(world: World) -> None:
    stream = world.client.admin.ListAudit(admin_pb2.AuditRequest(follow=True))
    assert (await stream.read()).what == "network created"
    await world.client.token()
    assert (await stream.read()).what == "token created"
    stream.cancel()


async def test_who_says_who_it_is(world: World) -> None:
    for name, who in (("alice", "operator alice"), ("a b", "operator")):
        metadata = ((rpc.OPERATOR, name),)
        await world.client.admin.CreateToken(admin_pb2.CreateTokenRequest(), metadata=metadata)
        assert (await told(world))[-1].who == who


# What somebody else wrote.


async def test_a_forged_entry_shows_as_such(lab: Mesh) -> None:
    (genuine,) = await entries(lab)
    kv = await lab.store.get(keys.audit(genuine.id))
    assert kv
    copied = keys.audit(rpc.request_id(START + 1))
    changed = keys.audit(genuine.id)
    await lab.store.txn([], [Put(copied, kv.value), Put(changed, kv.value.replace(b"created", b"blessed"))])
    found = await entries(lab)
    assert [entry.genuine for entry in found] == [False, False]
    assert found[0].deed.what == "network blessed"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\n\n",
        b"[]\nx",
        b"{\n",
        b"[" * 5000,
        json.dumps({"at_ms": 1 << 90, "deed": {"what": "\ud800\x1b[2J", "details": {"a": [1]}}}).encode(),
        json.dumps({"at_ms": -1, "deed": [], "who": {}}).encode(),
        json.dumps({"at_ms": True, "deed": {"details": 7, "name": "x" * 5000}}).encode(),
    ],
)
async def test_garbage_is_shown_and_harms_nobody(world: World, value: bytes) -> None:
    await world.controller.mirror._store.txn([], [Put(keys.audit("zz"), value)])
    entry = (await told(world))[-1]
    assert (entry.id, entry.genuine) == ("zz", False)
    assert "\x1b" not in entry.what


# The same request again.


async def test_a_request_that_comes_again_gets_the_same_answer(world: World) -> None:
    """As when the first answer was lost: nothing is done twice, and nothing "not found"."""
    admin = world.client.admin
    await world.client.joined(Host("a"))
    for method, request in (
        ("CreateToken", admin_pb2.CreateTokenRequest(uses=1)),
        ("CreateNetwork", admin_pb2.CreateNetworkRequest(name="blue")),
        ("AddPeer", admin_pb2.AddPeerRequest(name="phone", public_key=x25519_public_key())),
        ("RemoveNode", admin_pb2.RemoveNodeRequest(node="phone")),
        ("RemoveNode", admin_pb2.RemoveNodeRequest(node="a")),
    ):
        before = len(await told(world))
        metadata = ((rpc.REQUEST_ID, rpc.request_id()),)
        first, again = [await getattr(admin, method)(request, metadata=metadata) for _ in range(2)]
        assert len(await told(world)) == before + 1
        if method == "RemoveNode":
            assert (again.revision, again.node.id, again.node.name) == (
                first.revision,
                first.node.id,
                first.node.name,
            )
            assert again.node.addresses == first.node.addresses
        elif method == "AddPeer":
            assert again.node == first.node
        else:
            assert again == first


async def test_two_controllers_that_carry_out_one_request_enter_it_once(lab: Mesh) -> None:
    """The second finds the entry there, and with that its whole transaction comes to nothing."""
    change = [Put(keys.node("mesh", "x"), b"?")]
    compares, ops = lab.audit.entry(keys.audit(rpc.request_id()), Deed("node renewed", "mesh", "x"), change)
    results = [await lab.store.txn(compares, [*change, *ops]) for _ in range(2)]
    assert [result.succeeded for result in results] == [True, False]


async def test_a_repeated_removal_spares_who_took_the_name_since(world: World) -> None:
    await world.client.joined(Host("a"))
    request, metadata = admin_pb2.RemoveNodeRequest(node="a"), ((rpc.REQUEST_ID, rpc.request_id()),)
    first = await world.client.admin.RemoveNode(request, metadata=metadata)
    await world.client.joined(Host("a"))
    again = await world.client.admin.RemoveNode(request, metadata=metadata)
    assert again.revision == first.revision
    assert len(world.controller.mirror.held("nodes", "mesh")) == 1


async def test_a_request_id_that_can_not_be_one(world: World) -> None:
    with pytest.raises(Exception, match="is not a request id"):
        await world.client.admin.ListTokens(
            admin_pb2.ListTokensRequest(), metadata=((rpc.REQUEST_ID, "../tokens/x"),)
        )


# Trimming.


async def test_what_is_old_or_too_much_is_forgotten(lab: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "KEPT_ENTRIES", 150)
    for _ in range(300):
        lab.clock.now += 1
        await lab.token()
    other = Audit(lab.store, ROOT, lab.clock, "c2")
    await lab.audit.trim()
    await other.trim()
    kept = await entries(lab)
    assert len(kept) == 150
    assert kept[-1].at_ms == lab.clock.now * 1000
    lab.clock.now += audit_module.KEPT_SECONDS - 100
    await other.trim()
    assert len(await entries(lab)) == 101
    await lab.token()  # the mirror has come to all these revisions


async def test_since(lab: Mesh) -> None:
    lab.clock.now += 100
    token = await lab.token()
    assert [entry.deed.subject for entry in await entries(lab, START + 50)] == [token.id]


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("ipv4:192.0.2.7:53412", "192.0.2.7"),
        ("ipv6:%5B2001:db8::7%5D:53412", "2001:db8::7"),
        ("ipv6:[2001:db8::7]:53412", "2001:db8::7"),
        ("unix:", "this host"),
        ("", ""),
    ],
)
def test_where_a_call_comes_from(peer: str, shown: str) -> None:
    assert address(peer) == shown
