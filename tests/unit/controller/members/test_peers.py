import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import grpc.aio
import pytest

from overmesh.controller.daemon import running
from overmesh.controller.members.newcomers import checked_public_key
from overmesh.controller.members.peers import Added
from overmesh.controller.membership import node_id
from overmesh.controller.store import keys
from overmesh.controller.trust import MEMBERSHIP_DAYS, Identity
from overmesh.errors import (
    CloneError,
    ExistsError,
    InvalidError,
    NameTakenError,
    NotFoundError,
    OvermeshError,
    PoolExhaustedError,
    RemovedError,
)
from overmesh.model import Endpoint, Kind, Mode, Node, Suite, endpoints_key, node_key
from overmesh.proto import admin_pb2, mesh_pb2
from overmesh.proto.codec import endpoint_message
from tests.unit.controller.lab import Host, Mesh, client, config, mesh, x25519_public_key

KEY = x25519_public_key()
ID = node_id(KEY)
WHERE = (Endpoint(ip_address("192.0.2.7"), 51820), Endpoint(ip_address("2001:db8::7"), 51820))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


async def add(
    lab: Mesh,
    name: str = "phone",
    key: bytes = KEY,
    endpoints: tuple[Endpoint, ...] = (),
    network: str = "mesh",
) -> Added:
    return await lab.peers.add(network, name, key, endpoints)


def record(lab: Mesh, identity: str = ID) -> Node:
    node = lab.mirror.view("mesh").node(identity)
    assert node is not None
    return node


async def everything(lab: Mesh) -> dict[str, bytes]:
    """Return what is in the store beside the audit."""
    return {kv.key: kv.value for kv in (await lab.store.range(keys.PREFIX)).kvs}


async def refused(kind: type[OvermeshError], lab: Mesh, **said: object) -> OvermeshError:
    before = await everything(lab)
    with pytest.raises(kind) as raised:
        await add(lab, **said)  # type: ignore[arg-type]
    assert await everything(lab) == before
    return raised.value


# A peer comes in.


async def test_a_peer_has_what_a_node_has_but_nothing_to_connect_with(lab: Mesh) -> None:
    added = await add(lab, "Phone", endpoints=WHERE)
    assert added == Added(ID, lab.mirror.revision, already_member=False)
    node = record(lab)
    assert (node.id, node.name, node.network, node.public_key) == (ID, "phone", "mesh", KEY)
    assert (node.kind, node.suites, node.tags, node.routes) == (Kind.WIREGUARD, (Suite.CHACHA,), (), ())
    assert [address.version for address in node.addresses] == [4, 6]
    assert node.not_after == int(lab.clock.now) + MEMBERSHIP_DAYS * 86400
    held = [key for key in await everything(lab) if key.endswith((ID, "/phone", *map(str, node.addresses)))]
    assert sorted({key.split("/")[3] for key in held}) == ["addresses", "endpoints", "names", "nodes"]
    view = lab.mirror.view("mesh")
    places = view.endpoints(ID)
    assert places is not None
    assert (places.endpoints, places.lanes) == (WHERE, 1)
    assert {node_key(ID), endpoints_key(ID)} <= view.map.items.keys()


async def test_its_addresses_are_its_own(lab: Mesh) -> None:
    host = await lab.joined("web")
    await add(lab)
    assert not set(record(lab).addresses) & set(record(lab, host.id).addresses)
    assert len(lab.addresses()) == 4


async def test_it_is_in_the_map_that_agents_get(lab: Mesh) -> None:
    before = lab.mirror.view("mesh").map.head
    await add(lab)
    after = lab.mirror.view("mesh").map.head
    assert after.revision > before.revision
    assert after.digest != before.digest
    assert node_key(ID) in lab.mirror.view("mesh").map.items


# Asking again.


async def test_adding_again_changes_nothing(lab: Mesh) -> None:
    first = await add(lab, endpoints=WHERE)
    before = await everything(lab)
    assert await add(lab, "PHONE", endpoints=WHERE) == Added(ID, first.revision, already_member=True)
    assert await everything(lab) == before


async def test_adding_again_moves_it(lab: Mesh) -> None:
    await add(lab)
    node = record(lab)
    added = await add(lab, endpoints=WHERE[:1])
    assert added.already_member
    places = lab.mirror.view("mesh").endpoints(ID)
    assert places is not None
    assert places.endpoints == WHERE[:1]
    assert record(lab) == node
    await add(lab)
    places = lab.mirror.view("mesh").endpoints(ID)
    assert places is not None
    assert places.endpoints == ()


async def test_adding_again_in_its_second_half_renews_it(lab: Mesh) -> None:
    await add(lab)
    node = record(lab)
    lab.clock.now += (MEMBERSHIP_DAYS / 2 + 1) * 86400
    assert (await add(lab)).already_member
    renewed = record(lab)
    assert renewed.not_after == int(lab.clock.now) + MEMBERSHIP_DAYS * 86400
    assert renewed.serial > node.serial
    assert replace(renewed, not_after=node.not_after, serial=node.serial) == node


async def test_two_at_once_are_one(lab: Mesh) -> None:
    both = await asyncio.gather(add(lab), add(lab))
    assert sorted(added.already_member for added in both) == [False, True]
    assert len(lab.addresses()) == 2


# Refusals.


async def test_a_plain_network_takes_none(lab: Mesh) -> None:
    await lab.membership.create_network("rack", mode=Mode.PLAIN)
    error = await refused(InvalidError, lab, network="rack")
    assert error.cause == "network rack is plain: a stock WireGuard peer can't take part in it"
    assert "meshctl network create" in error.fix


async def test_no_such_network(lab: Mesh) -> None:
    await refused(NotFoundError, lab, network="nowhere")


async def test_a_name_that_is_taken(lab: Mesh) -> None:
    await lab.joined("web")
    error = await refused(NameTakenError, lab, name="Web")
    assert "meshctl node remove web" in error.fix


async def test_a_name_that_can_not_be(lab: Mesh) -> None:
    assert (await refused(InvalidError, lab, name="my phone")).cause == "'my phone' can't be a peer name"


async def test_a_key_that_an_agent_has(lab: Mesh) -> None:
    host = await lab.joined("web")
    error = await refused(ExistsError, lab, key=host.public_key)
    assert error.cause == "this public key is that of node web, which runs an agent"
    await refused(ExistsError, lab, key=host.public_key, name="web")


async def test_a_key_that_another_peer_has(lab: Mesh) -> None:
    await add(lab, "tablet")
    error = await refused(ExistsError, lab)
    assert error.cause == "this public key is that of peer tablet"
    assert "meshctl peer remove tablet" in error.fix


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("10.9.0.7", "inside the overlay network mesh"),
        ("ff02::1", "multicast"),
    ],
)
async def test_an_endpoint_that_nobody_reaches(place: str, why: str, lab: Mesh) -> None:
    error = await refused(InvalidError, lab, endpoints=(Endpoint(ip_address(place), 51820),))
    assert why in error.cause
    assert error.fix == "give one at which other hosts reach the peer, or none"


async def test_a_full_network(tmp_path: Path) -> None:
    async with mesh(tmp_path, ("10.9.0.0/30",)) as lab:
        await lab.joined("a")
        await lab.joined("b")
        await refused(PoolExhaustedError, lab)


# Curve25519's points of small order and their other spellings, as RFC 7748 and libsodium's list have them.
SMALL = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize(
    "key",
    [
        b"",
        KEY[:31],
        KEY + b"\0",
        *SMALL,
        KEY[:31] + bytes([KEY[31] | 0x80]),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
        b"\xff" * 32,
    ],
    ids=lambda key: key.hex()[:16] or "empty",
)
async def test_what_is_no_public_key(key: bytes) -> None:
    with pytest.raises(InvalidError, match="the public key is not an X25519 key of 32 bytes"):
        checked_public_key(key)


async def test_keys_are_checked_on_both_ways_in(lab: Mesh) -> None:
    await refused(InvalidError, lab, key=SMALL[2])
    host = Host("web", public_key=SMALL[2])
    with pytest.raises(InvalidError, match="the public key is not"):
        await lab.joins.join(host.application(await lab.token()))


# Out again, and what an agent may not do with it.


async def test_removal_takes_all_of_it(lab: Mesh) -> None:
    before = await everything(lab)
    await add(lab, endpoints=WHERE)
    assert await lab.membership.find("mesh", "phone") == ID
    await lab.revocations.remove("mesh", ID)
    after = await everything(lab)
    assert after.pop(keys.revoked("mesh", ID))
    assert after == before
    assert not (await add(lab)).already_member


async def test_an_agent_can_not_join_as_a_peer(lab: Mesh) -> None:
    host = Host("phone", public_key=KEY)
    await add(lab, "phone")
    before = await everything(lab)
    token = await lab.token()
    with pytest.raises(CloneError) as raised:
        await lab.joins.join(host.application(token))
    assert raised.value.cause == "this host's X25519 key is that of phone, a stock WireGuard peer"
    assert "meshctl peer remove phone" in raised.value.fix
    after = await everything(lab)
    assert {key for key in after if "/tokens/" not in key} == {key for key in before if "/tokens/" not in key}


async def test_the_certificate_of_a_host_that_was_removed_is_not_the_peers(lab: Mesh) -> None:
    """A host's key may become a stock peer's; its certificate is still valid then."""
    host = await lab.joined("web")
    await lab.revocations.remove("mesh", host.id)
    await add(lab, "web", host.public_key)
    before = await everything(lab)
    identity = Identity("mesh", host.id)
    with pytest.raises(RemovedError):
        lab.agents.open(identity, mesh_pb2.Hello(host_id="x"), 0)
    with pytest.raises(RemovedError):
        lab.agents.check_connected(identity, "x")
    with pytest.raises(RemovedError):
        await lab.membership.report("mesh", host.id, WHERE)
    await lab.revocations.leave("mesh", host.id)
    assert await everything(lab) == before


async def test_nobody_waits_for_it(lab: Mesh) -> None:
    await add(lab)
    assert lab.agents.count("mesh") == 0
    assert not list(lab.agents.behind("mesh", lab.mirror.revision))


# Over the admin socket.


async def test_what_meshctl_hears(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with running(settings) as controller, client(settings, controller) as talking:
        request = admin_pb2.AddPeerRequest(
            name="Phone", public_key=KEY, endpoints=map(endpoint_message, WHERE)
        )
        reply = await talking.admin.AddPeer(request)
        assert (reply.node.id, reply.node.name, reply.node.network) == (ID, "phone", "mesh")
        assert reply.node.public_key == KEY
        assert reply.node.kind == mesh_pb2.KIND_WIREGUARD
        assert len(reply.node.addresses) == len(reply.node.endpoints) == 2
        assert (reply.already_member, reply.node.online) == (False, False)
        assert reply.revision == controller.mirror.revision
        again = await talking.admin.AddPeer(request)
        assert (again.already_member, again.node, again.revision) == (True, reply.node, reply.revision)
        waited = await talking.admin.Wait(admin_pb2.WaitRequest(timeout_ms=1000))
        assert (waited.converged, waited.agents) == (True, 0)
        request.endpoints[0].port = 0
        with pytest.raises(grpc.aio.AioRpcError, match="endpoint port 0 is not between 1 and 65535"):
            await talking.admin.AddPeer(request)
        gone = await talking.admin.RemoveNode(admin_pb2.RemoveNodeRequest(node="phone"))
        assert gone.node == reply.node
        assert not (await talking.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
