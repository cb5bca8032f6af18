from ipaddress import ip_address

import pytest

from overmesh.agent.endpoints import LIMIT, candidates, configured
from overmesh.agent.host import Link, LinkAddress, Underlay
from overmesh.errors import ConfigError


def host(*interfaces: tuple[Link, tuple[str, ...]]) -> Underlay:
    return Underlay(
        tuple(link for link, _ in interfaces),
        tuple(LinkAddress(link.index, ip_address(text), 24) for link, texts in interfaces for text in texts),
    )


def offered(underlay: Underlay, *preferred: str) -> list[str]:
    return [str(one) for one in candidates(underlay, 6081, map(ip_address, preferred))]


LO = Link(1, "lo", loopback=True), ("127.0.0.1", "::1", "198.51.100.1")
ETH0 = Link(2, "eth0"), ("192.0.2.7", "2001:db8::7", "fe80::7")


def test_addresses_that_lead_out_are_offered() -> None:
    assert offered(host(LO, ETH0)) == ["192.0.2.7:6081", "[2001:db8::7]:6081"]


@pytest.mark.parametrize(
    "kind",
    ["bridge", "openvswitch", "tun", "wireguard", "vxlan", "geneve", "dummy", "ipip", "sit", "gre", "xfrm"],
)
def test_overlays_and_bridges_are_not(kind: str) -> None:
    assert offered(host(ETH0, (Link(3, "x0", kind), ("10.1.0.1",)))) == offered(host(ETH0))


@pytest.mark.parametrize("kind", ["", "veth", "vlan", "bond", "macvlan", "ipvlan", "team"])
def test_other_kinds_are(kind: str) -> None:
    assert offered(host((Link(3, "x0", kind), ("10.1.0.1",)))) == ["10.1.0.1:6081"]


@pytest.mark.parametrize(
    "name", ["docker0", "cni0", "cali12ab", "cilium_host", "flannel.1", "lxcbr0", "kube-ipvs0"]
)
def test_container_networks_are_not_whatever_their_kind(name: str) -> None:
    assert offered(host((Link(3, name, "veth"), ("10.1.0.1",)))) == []


def test_what_hangs_on_a_bridge_is_not_but_a_bond_member_is() -> None:
    bridge, bond = Link(5, "br0", "bridge"), Link(6, "bond0", "bond")
    port, member = Link(7, "eth1", master=5), Link(8, "eth2", master=6)
    underlay = host((bridge, ()), (bond, ()), (port, ("10.1.0.1",)), (member, ("10.2.0.1",)))
    assert offered(underlay) == ["10.2.0.1:6081"]


def test_an_interface_that_is_down_is_not() -> None:
    assert offered(host((Link(3, "eth1", up=False), ("10.1.0.1",)))) == []


def test_passing_addresses_are_not() -> None:
    underlay = Underlay((ETH0[0],), (LinkAddress(2, ip_address("2001:db8::8"), 64, usable=False),))
    assert offered(underlay) == []


def test_the_way_to_the_controller_comes_first_then_its_neighbours() -> None:
    underlay = host((Link(2, "eth0"), ("10.1.0.1",)), (Link(3, "eth1"), ("10.2.0.1", "2001:db8::2")))
    assert offered(underlay, "2001:db8::2") == ["[2001:db8::2]:6081", "10.2.0.1:6081", "10.1.0.1:6081"]


def test_second_addresses_of_a_subnet_come_last_unless_packets_leave_from_one() -> None:
    second = LinkAddress(2, ip_address("192.0.2.8"), 24, secondary=True)
    other = Link(3, "eth1")
    underlay = Underlay((ETH0[0], other), (second, *host(ETH0, (other, ("10.1.0.1",))).addresses))
    usual = ["192.0.2.7:6081", "[2001:db8::7]:6081", "10.1.0.1:6081"]
    assert offered(underlay) == [*usual, "192.0.2.8:6081"]
    assert offered(underlay, "192.0.2.8") == ["192.0.2.8:6081", *usual]


def test_there_is_a_limit() -> None:
    assert len(offered(host((Link(2, "eth0"), tuple(f"10.1.0.{n}" for n in range(1, 30)))))) == LIMIT


def test_the_configuration_says_it_all() -> None:
    texts = ["203.0.113.7", "203.0.113.7:9000", "2001:db8::7", "[2001:db8::7]", "[2001:db8::7]:9000"]
    assert [str(one) for one in configured(texts, 6081)] == [
        "203.0.113.7:6081",
        "203.0.113.7:9000",
        "[2001:db8::7]:6081",
        "[2001:db8::7]:6081",
        "[2001:db8::7]:9000",
    ]


@pytest.mark.parametrize(
    "text", ["", "host.example", "203.0.113.7:0", "203.0.113.7:65536", "[::1", "1.2.3.4:x"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        configured([text], 6081)
