from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.agent import desired as module
from overmesh.agent.desired import KEEPALIVE, Desired, Made, Own, agreed_suite, desire
from overmesh.agent.host import Link, LinkAddress, Underlay
from overmesh.agent.plan import ApplyFastpath
from overmesh.config import AgentConfig
from overmesh.model import Endpoint, FastpathPeer, Kind, Mode, Peer, PeerMap, Suite, node_key
from overmesh.proto.codec import apply_request
from overmesh.proto.signed import sign
from tests.unit.agent.world import FORGER, ME, NETWORK, SOON, members, node, replica, signed, snapshot

ETH0, OM0 = Link(2, "eth0", mtu=1500), Link(9, "om0", "tun", mtu=1420)
UNDERLAY = Underlay((ETH0, OM0), (LinkAddress(2, ip_address("192.0.2.1"), 24),))
KEY = b"the private key of this host...."
OTHER = b"o" * 32
HERE = (Endpoint(ip_address("192.0.2.1"), 6081),)
V4, V6 = Endpoint(ip_address("192.0.2.2"), 6081), Endpoint(ip_address("2001:db8::2"), 6081)
MAP = PeerMap(5, NETWORK, ME, (Peer(node(2), (V6, V4)),))


def desired(peer_map: PeerMap = MAP, underlay: Underlay = UNDERLAY, **settings: object) -> Desired:
    return desire(peer_map, AgentConfig(**settings), underlay, Own(HERE, KEY))  # type: ignore[arg-type]


# Plain and sealed alike.


def test_a_host_as_it_should_be() -> None:
    want = desired()
    assert (want.interface, want.mtu, want.addresses) == ("om0", 1420, ME.addresses)
    assert want.routes == tuple(zip(NETWORK.ranges, ME.addresses, strict=True))
    assert (want.fastpath.revision, want.fastpath.network_number, want.fastpath.port) == (5, 7, 6081)
    [peer] = want.fastpath.peers
    assert (peer.id, peer.name, peer.mode) == ("n2", "host2", Mode.PLAIN)
    assert [str(prefix) for prefix in peer.prefixes] == ["10.77.0.2/32", "fd77::2/128"]


@pytest.mark.parametrize(
    ("network", "settings", "underlay_mtu", "mtu", "reason"),
    [
        (0, {}, 1500, 1420, "eth0 has 1500, less 80 for the tunnel"),
        (0, {}, 9000, 8920, "eth0 has 9000, less 80 for the tunnel"),
        (0, {}, 1300, 1280, "eth0 has 1300, less 80 for the tunnel, but IPv6 needs 1280"),
        (1400, {}, 9000, 1400, "set for network mesh"),
        (1400, {"mtu": 1300}, 9000, 1300, "set in this host's configuration"),
    ],
)
def test_the_mtu_and_why(
    network: int, settings: dict[str, object], underlay_mtu: int, mtu: int, reason: str
) -> None:
    underlay = Underlay((replace(ETH0, mtu=underlay_mtu),), UNDERLAY.addresses)
    want = desired(replace(MAP, network=replace(NETWORK, mtu=network)), underlay, **settings)
    assert (want.mtu, want.mtu_reason, want.fastpath.mtu) == (mtu, reason, mtu)


def test_the_mtu_without_a_known_underlay() -> None:
    want = desired(underlay=Underlay())
    assert (want.mtu, want.mtu_reason) == (1420, "no underlay interface known: 1500 less 80")


def test_a_peer_is_reached_where_this_host_can_send() -> None:
    only_v4 = desired().fastpath.peers[0].endpoints
    both = Underlay((ETH0,), (*UNDERLAY.addresses, LinkAddress(2, ip_address("2001:db8::1"), 64)))
    assert (only_v4, desired(underlay=both).fastpath.peers[0].endpoints) == ((V4, V6), (V6, V4))


def test_the_overlay_does_not_count_as_a_way_to_send() -> None:
    overlaid = Underlay((ETH0, OM0), (*UNDERLAY.addresses, LinkAddress(9, ip_address("fd77::1"), 128)))
    assert desired(underlay=overlaid).fastpath.peers[0].endpoints == (V4, V6)


def test_an_endpoint_inside_the_overlay_is_not_used() -> None:
    circular = replace(MAP, peers=(Peer(node(2), (Endpoint(ip_address("10.77.0.9"), 6081), V4)),))
    assert desired(circular).fastpath.peers[0].endpoints == (V4,)


def test_lanes_of_this_host_and_of_its_peers() -> None:
    two = replace(MAP, peers=(Peer(node(2), (V4,), lanes=4),))
    state = desire(two, AgentConfig(), UNDERLAY, Own(HERE, KEY, lanes=2)).fastpath
    assert (state.lanes, state.peers[0].lanes) == (2, 4)


# Sealed.

BOTH = (Suite.CHACHA, Suite.AES)
SEALED = replace(NETWORK, mode=Mode.SEALED)


def sealed(*peers: Peer, me: tuple[Suite, ...] = BOTH) -> Desired:
    return desired(PeerMap(5, SEALED, replace(ME, suites=me), peers))


def only(want: Desired) -> FastpathPeer:
    [peer] = want.fastpath.peers
    return peer


def test_a_sealed_network() -> None:
    want = sealed(Peer(node(2, suites=BOTH), (V4,)))
    assert (want.fastpath.private_key, want.fastpath.port) == (KEY, 51820)
    peer = only(want)
    assert (peer.mode, peer.public_key, peer.suite) == (Mode.SEALED, node(2).public_key, Suite.AES)
    assert (peer.keepalive_s, peer.stock) == (KEEPALIVE, False)


def test_keys_that_are_changing() -> None:
    changing = PeerMap(5, SEALED, ME, (Peer(node(2, previous_public_key=b"\3" * 32), (V4,)),))
    own = Own(HERE, KEY, OTHER)
    request = apply_request(desire(changing, AgentConfig(), UNDERLAY, own).fastpath)
    assert (request.private_key, request.other_private_key) == (KEY, OTHER)
    [peer] = request.peers
    assert (peer.public_key, peer.previous_public_key) == (node(2).public_key, b"\3" * 32)


def test_no_key_leaves_in_a_plain_network() -> None:
    plain = replace(MAP, peers=(Peer(node(2, previous_public_key=b"\3" * 32), (V4,)),))
    request = apply_request(desire(plain, AgentConfig(), UNDERLAY, Own(HERE, KEY, OTHER)).fastpath)
    assert (request.private_key, request.other_private_key) == (b"", b"")
    assert (request.peers[0].public_key, request.peers[0].previous_public_key) == (b"", b"")


def test_the_private_key_is_in_nothing_that_gets_printed() -> None:
    want = sealed(Peer(node(2), (V4,)))
    assert want.fastpath.private_key == KEY
    step = ApplyFastpath(want.fastpath)
    for shown in (repr(want), str(want), repr(Own(HERE, KEY, OTHER)), repr(step), str(step)):
        assert KEY.decode() not in shown
        assert OTHER.decode() not in shown


def test_the_port_that_a_host_is_told_counts_in_both_modes() -> None:
    for network in (NETWORK, SEALED):
        assert desired(replace(MAP, network=network), port=7000).fastpath.port == 7000


@pytest.mark.parametrize(
    ("mine", "theirs", "suite"),
    [
        (BOTH, BOTH, Suite.AES),
        (BOTH, (Suite.CHACHA,), Suite.CHACHA),
        ((Suite.CHACHA,), BOTH, Suite.CHACHA),
        ((Suite.AES,), (Suite.CHACHA,), Suite.CHACHA),
    ],
)
def test_the_best_suite_that_both_offer(
    mine: tuple[Suite, ...], theirs: tuple[Suite, ...], suite: Suite
) -> None:
    assert only(sealed(Peer(node(2, suites=theirs), (V4,)), me=mine)).suite is suite


@given(*[st.lists(st.sampled_from(Suite), min_size=1).map(tuple)] * 2)
def test_both_ends_find_the_same_suite(one: tuple[Suite, ...], other: tuple[Suite, ...]) -> None:
    a, b = node(1, suites=one), node(2, suites=other)
    assert agreed_suite(a, b) is agreed_suite(b, a)


def test_only_a_signed_record_changes_the_suite() -> None:
    """Someone who can write to the store or to the stream shows a weaker record: it is not used."""
    network = replace(NETWORK, mode=Mode.SEALED, serial=2)
    strong, weak = node(2, suites=BOTH, serial=10), node(2, suites=(Suite.CHACHA,), serial=11)
    me = node(1, suites=BOTH, serial=11)
    here, items = replica(), members(2) | signed(network, me, strong)
    here.receive(snapshot(5, items)[0])

    def suite() -> Suite:
        return only(desired(here.view(SOON).map)).suite

    assert suite() is Suite.AES
    forged = {node_key("n2"): sign(weak, FORGER)}
    here.receive(snapshot(6, items | forged)[0])
    assert suite() is Suite.AES
    replayed = signed(replace(weak, serial=9))
    here.receive(snapshot(7, items | replayed)[0])
    assert suite() is Suite.AES
    here.receive(snapshot(8, items | signed(weak))[0])
    assert suite() is Suite.CHACHA


def test_only_a_signed_record_makes_a_sealed_network_plain() -> None:
    here = replica()
    items = members(2) | signed(replace(NETWORK, mode=Mode.SEALED, serial=2))
    here.receive(snapshot(5, items)[0])
    here.receive(snapshot(6, items | signed(NETWORK))[0])  # the older record, from before
    state = desired(here.view(SOON).map).fastpath
    assert (state.private_key, state.peers[0].mode) == (KEY, Mode.SEALED)


def test_a_stock_wireguard_peer_is_left_alone() -> None:
    phone = node(2, kind=Kind.WIREGUARD, suites=(Suite.CHACHA,))
    peer = only(sealed(Peer(phone, ())))
    assert (peer.stock, peer.suite, peer.keepalive_s, peer.endpoints) == (True, Suite.CHACHA, 0, ())


def test_a_large_network_makes_sessions_when_there_is_something_to_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEEPALIVE_PEERS", 1)
    two = (Peer(node(2), (V4,)), Peer(node(3), (V4,)))
    assert [peer.keepalive_s for peer in sealed(*two).fastpath.peers] == [0, 0]
    assert only(sealed(*two[:1])).keepalive_s == KEEPALIVE


# What is kept from one look to the next.


def test_a_fastpath_peer_is_made_again_only_when_something_about_it_changes() -> None:
    made, own = Made(), Own(HERE, KEY)
    two = Peer(node(2), (V4,))
    three = Peer(node(3), (V6, V4))

    def peers(*wanted: Peer, underlay: Underlay = UNDERLAY, mode: Mode = Mode.PLAIN) -> list[FastpathPeer]:
        peer_map = PeerMap(5, replace(NETWORK, mode=mode), ME, wanted)
        found = desire(peer_map, AgentConfig(), underlay, own, made).fastpath.peers
        assert found == desire(peer_map, AgentConfig(), underlay, own).fastpath.peers
        return list(found)

    first = peers(two, three)
    moved = peers(two, Peer(three.node, (V4,)))
    assert moved[0] is first[0]
    assert moved[1].endpoints == (V4,)
    assert peers(three)[0] is not first[1]
    # Seen from elsewhere, all may be different.
    other = Underlay((ETH0, OM0), (LinkAddress(2, ip_address("2001:db8::1"), 64),))
    assert peers(three, underlay=other)[0].endpoints == (V6, V4)
    assert peers(three)[0].endpoints == (V4, V6)
    assert peers(three, mode=Mode.SEALED)[0].public_key == three.node.public_key
