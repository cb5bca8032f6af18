import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from overmesh.controller.membership import Membership, Signer
from overmesh.controller.mirror import Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put, TxnResult
from overmesh.controller.trust import Identity
from overmesh.errors import ExistsError, InvalidError, NotFoundError, RemovedError, StoreUnavailableError
from overmesh.model import Endpoint, Mode, Network, Node, endpoints_key, node_key, revoked_key
from overmesh.proto import mesh_pb2
from overmesh.proto.signed import read
from tests.unit.controller.lab import ROOT, Clock, Host, Mesh, mesh


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh(tmp_path) as here:
        yield here


def place(text: str) -> Endpoint:
    return Endpoint(ip_address(text), 6081)


# Networks.


async def test_the_first_start_makes_the_default_network_and_later_ones_do_not(tmp_path: Path) -> None:
    async with mesh(tmp_path, ranges=()) as lab:
        (view,) = lab.mirror.networks
        first = view.network
        assert (first.name, first.number, first.mode) == ("mesh", 1, Mode.SEALED)
        ipv4, ipv6 = first.ranges
        assert str(ipv4) == "10.77.0.0/16"
        assert isinstance(ipv6, IPv6Network)
        assert ipv6.subnet_of(IPv6Network("fd00::/8"))
        assert ipv6.prefixlen == 64
    async with mesh(tmp_path, ranges=("10.1.0.0/16",)) as lab:
        assert [view.network for view in lab.mirror.networks] == [first]


async def test_two_meshes_have_different_ulas(tmp_path: Path) -> None:
    async with mesh(tmp_path / "one", ranges=()) as one, mesh(tmp_path / "two", ranges=()) as two:
        ranges = [lab.mirror.view("mesh").network.ranges for lab in (one, two)]
    assert ranges[0][0] == ranges[1][0]
    assert ranges[0][1] != ranges[1][1]


async def test_further_networks_get_the_next_number_and_the_next_free_range(lab: Mesh) -> None:
    view = await lab.membership.create_network("Blue", mtu=1400)
    assert (view.network.name, view.network.number, view.network.mtu) == ("blue", 2, 1400)
    assert view.network.ranges[0] == IPv4Network("10.77.0.0/16")
    view = await lab.membership.create_network("green")
    assert view.network.number == 3
    assert view.network.ranges[0] == IPv4Network("10.78.0.0/16")


async def test_networks_made_at_once_get_different_numbers_and_ranges(lab: Mesh) -> None:
    views = await asyncio.gather(*(lab.membership.create_network(f"n{number}") for number in range(8)))
    assert {view.network.number for view in views} == set(range(2, 10))
    assert len({view.network.ranges[0] for view in views}) == 8


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (["10.9.128.0/17"], "overlaps 10.9.0.0/16 of network mesh"),
        (["10.0.0.0/8"], "overlaps"),
        (["10.1.0.0/16", "10.2.0.0/16"], "same family"),
        (["10.1.0.1/16"], "not a range"),
        (["ten"], "not a range"),
        (["10.1.0.0/31"], "from /8 to /30"),
        (["fd00:1::/65"], "/64 or larger"),
        (["224.0.0.0/8"], "set aside"),
        (["127.0.0.0/8"], "set aside"),
        (["169.254.0.0/16"], "set aside"),
        (["0.0.0.0/8"], "set aside"),
        (["fe80::/64"], "set aside"),
    ],
)
async def test_ranges_that_can_not_be(lab: Mesh, ranges: list[str], message: str) -> None:
    with pytest.raises(InvalidError) as raised:
        await lab.membership.create_network("blue", ranges)
    assert message in f"{raised.value.cause}; {raised.value.fix}"
    assert [view.name for view in lab.mirror.networks] == ["mesh"]


async def test_a_network_is_sealed_unless_plain_is_asked_for(lab: Mesh) -> None:
    sealed = await lab.membership.create_network("blue")
    plain = await lab.membership.create_network("rack", mode=Mode.PLAIN)
    assert (sealed.network.mode, plain.network.mode) == (Mode.SEALED, Mode.PLAIN)


@pytest.mark.parametrize("mtu", [1, 1279, 65536])
async def test_mtus_that_can_not_be(lab: Mesh, mtu: int) -> None:
    with pytest.raises(InvalidError, match=str(mtu)) as raised:
        await lab.membership.create_network("blue", mtu=mtu)
    assert "1280 to 65535" in raised.value.fix


async def test_names_of_networks(lab: Mesh) -> None:
    with pytest.raises(ExistsError, match="mesh exists"):
        await lab.membership.create_network("Mesh")
    with pytest.raises(InvalidError, match="network name"):
        await lab.membership.create_network("a/b")


# Nodes.


async def test_a_removed_node_leaves_nothing_but_a_revocation_behind(lab: Mesh) -> None:
    before = {kv.key for kv in (await lab.store.range(keys.PREFIX)).kvs}
    token = await lab.token()
    host = await lab.joined("a", token)
    revision = await lab.revocations.remove("mesh", await lab.membership.find("mesh", "A"))
    assert lab.mirror.view("mesh").map.head.revision == revision
    assert {kv.key for kv in (await lab.store.range(keys.PREFIX)).kvs} == before | {
        keys.token(token.id),
        keys.revoked("mesh", host.id),
    }
    with pytest.raises(NotFoundError):
        await lab.revocations.remove("mesh", host.id)


async def test_nodes_are_found_by_id_before_name(lab: Mesh) -> None:
    first = await lab.joined("a")
    second = Host(first.id)  # named like the other's id
    await lab.joins.join(second.application(await lab.token()))
    assert await lab.membership.find("mesh", "a") == await lab.membership.find("mesh", first.id) == first.id
    for network, node in (("mesh", "b"), ("nowhere", "a")):
        with pytest.raises(NotFoundError):
            await lab.membership.find(network, node)


async def test_leaving_twice_is_as_good_as_once(lab: Mesh) -> None:
    host = await lab.joined("a")
    revision = await lab.revocations.leave("mesh", host.id)
    assert await lab.revocations.leave("mesh", host.id) == revision


async def test_two_hundred_joins_and_removals_in_a_small_pool(tmp_path: Path) -> None:
    async with mesh(tmp_path, ("10.9.0.0/28", "fd00:9::/64")) as lab:
        token = await lab.token()
        for number in range(200):
            await lab.joined(f"n{number}", token)
            held = lab.addresses()
            nodes = [
                record for record in lab.mirror.view("mesh").records.values() if isinstance(record, Node)
            ]
            assert sorted(str(address) for node in nodes for address in node.addresses) == held
            if number % 10 == 9:
                for back in range(10):
                    name = f"n{number - back}"
                    await lab.revocations.remove("mesh", await lab.membership.find("mesh", name))
        assert lab.addresses() == []
        view = lab.mirror.view("mesh")
        gone = {revoked_key(revocation.node_id) for revocation in lab.revocations.known("mesh")}
        assert view.map.items.keys() == {"network"} | gone


async def test_nobody_waits_for_a_removed_node_whose_stream_hangs(lab: Mesh) -> None:
    host = await lab.joined("a")
    agent = lab.agents.open(Identity("mesh", host.id), mesh_pb2.Hello(host_id="one"), 0)
    assert [behind.node_id for behind in lab.agents.behind("mesh", 1)] == [host.id]
    await lab.revocations.remove("mesh", host.id)
    assert isinstance(agent.end, RemovedError)
    assert list(lab.agents.behind("mesh", lab.mirror.revision)) == []
    assert lab.agents.count("mesh") == 0


# Endpoints.


async def test_endpoints_are_signed_only_when_they_change(lab: Mesh) -> None:
    host = await lab.joined("a")
    known = lab.mirror.view("mesh").map.head.revision
    assert await lab.membership.report("mesh", host.id, host.endpoints) == known
    revision = await lab.membership.report("mesh", host.id, [place("198.51.100.1"), place("2001:db8::1")])
    view = lab.mirror.view("mesh")
    assert revision == view.map.head.revision > known
    places = view.endpoints(host.id)
    assert places is not None
    assert [str(endpoint) for endpoint in places.endpoints] == ["198.51.100.1:6081", "[2001:db8::1]:6081"]


async def test_lanes_are_signed_with_the_endpoints_and_kept_when_a_host_joins_again(lab: Mesh) -> None:
    token = await lab.token()
    host = await lab.joined("a", token)
    revision = await lab.membership.report("mesh", host.id, host.endpoints, 4)
    assert await lab.membership.report("mesh", host.id, host.endpoints, 4) == revision
    await lab.joins.join(host.application(token))
    places = lab.mirror.view("mesh").endpoints(host.id)
    assert places is not None
    assert places.lanes == 4
    assert lab.mirror.view("mesh").map.head.revision == revision


async def test_a_report_that_is_carried_out_late_does_not_undo_a_newer_one(
    lab: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await lab.joined("a")
    txn, sent = lab.store.txn, []

    async def unanswered(compares: Any, ops: Any) -> TxnResult:
        sent.append((compares, ops))
        raise StoreUnavailableError("it may or may not have happened")

    with monkeypatch.context() as lost:
        lost.setattr(lab.store, "txn", unanswered)
        with pytest.raises(StoreUnavailableError):
            await lab.membership.report("mesh", host.id, [place("198.51.100.1")])
    await lab.membership.report("mesh", host.id, [place("198.51.100.2")])
    assert not (await txn(*sent[0])).succeeded


async def test_a_bad_report_changes_nothing(lab: Mesh) -> None:
    host = await lab.joined("a")
    known = lab.mirror.revision
    with pytest.raises(InvalidError, match="inside the overlay network mesh"):
        await lab.membership.report("mesh", host.id, [place("10.9.0.1")])
    assert lab.mirror.revision == known


async def test_a_removed_node_can_not_report_itself_back(lab: Mesh) -> None:
    host = await lab.joined("a")
    await lab.revocations.remove("mesh", host.id)
    with pytest.raises(RemovedError):
        await lab.membership.report("mesh", host.id, [place("198.51.100.1")])
    assert endpoints_key(host.id) not in lab.mirror.view("mesh").map.items


async def test_removal_and_report_race(lab: Mesh) -> None:
    host = await lab.joined("a")
    reports = [lab.membership.report("mesh", host.id, [place(f"198.51.100.{n}")]) for n in range(1, 9)]
    removal = lab.revocations.remove("mesh", host.id)
    results = await asyncio.gather(*reports[:4], removal, *reports[4:], return_exceptions=True)
    assert {type(result) for result in results} == {int, RemovedError}
    assert set(lab.mirror.view("mesh").map.items) == {"network", revoked_key(host.id)}


# Serials.


def test_serials_grow_even_when_the_clock_does_not() -> None:
    clock = Clock()
    signer = Signer(ROOT, clock)

    def serial(before: int) -> int:
        record = read("network", signer.sign(Network("n", 1, (), serial=before)))
        return record.serial

    assert serial(0) == int(clock.now * 1000)
    clock.now -= 100
    assert serial(0) == int((clock.now + 100) * 1000) + 1
    assert serial(9_000_000_000_000) == 9_000_000_000_001
    assert serial(0) == 9_000_000_000_002


# The mirror.


async def test_a_mirror_that_was_compacted_away_reads_everything_again(lab: Mesh) -> None:
    late = Mirror(lab.store, ROOT.anchor, lab.audit)
    await late.load()
    host = await lab.joined("a")
    gone = await lab.joined("b")
    seen: list[str] = []
    late.on_change(lambda network, changes: seen.extend(changes))
    await lab.revocations.remove("mesh", gone.id)
    await lab.store.compact(lab.mirror.revision)
    following = asyncio.create_task(late.follow())
    try:
        await late.reached(lab.mirror.revision)
    finally:
        following.cancel()
    assert late.view("mesh").map.items == lab.mirror.view("mesh").map.items
    assert late.view("mesh").map.head.digest == lab.mirror.view("mesh").map.head.digest
    assert node_key(host.id) in seen


async def test_records_of_other_kinds_networks_or_roots_are_refused_but_passed_on(lab: Mesh) -> None:
    host = await lab.joined("a")
    view = lab.mirror.view("mesh")
    await lab.membership.create_network("blue")
    copied = view.map.items[node_key(host.id)]
    forged = Signer(type(ROOT).new(), lab.clock).sign(
        Node("x", "mesh", "x", bytes(32), (ip_address("10.9.0.9"),))
    )
    puts = {
        keys.node("blue", host.id): copied,
        keys.node("mesh", "x"): forged,
        keys.endpoints("mesh", "x"): copied,
        keys.node("mesh", "y"): b"\xff",
    }
    result = await lab.store.txn([], [Put(key, value) for key, value in puts.items()])
    await lab.mirror.reached(result.revision)
    assert view.map.items[node_key("x")] == forged
    assert view.refused[node_key("x")] == "not signed by this mesh's root"
    assert "not signed" in view.refused[endpoints_key("x")]
    assert view.refused[node_key("y")] == "not a signed record"
    assert lab.mirror.view("blue").refused[node_key(host.id)] == "is of network mesh, not of blue"


async def test_random_bits_are_the_operators_to_inject(lab: Mesh) -> None:
    membership = Membership(lab.mirror, Signer(ROOT, lab.clock), lambda bits: (1 << bits) - 1)
    view = await membership.create_network("blue")
    assert str(view.network.ranges[1]) == "fdff:ffff:ffff::/64"
