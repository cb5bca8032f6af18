import base64
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from overmesh import wgquick
from overmesh.model import Endpoint, Node, Peer

V4, V6 = Endpoint(ip_address("192.0.2.9"), 51820), Endpoint(ip_address("2001:db8::9"), 51821)


def peer(name: str, *endpoints: Endpoint, number: int = 1, **fields: Any) -> Peer:
    said: dict[str, Any] = {
        "id": f"id-{name}",
        "network": "mesh",
        "name": name,
        "public_key": bytes([number]) * 32,
        "addresses": (ip_address(f"10.77.0.{number}"), ip_address(f"fd77::{number}")),
    }
    return Peer(Node(**(said | fields)), endpoints)


def render(me: Peer, *others: Peer, **said: Any) -> str:
    defaults: dict[str, Any] = {"mtu": 1420, "private_key": b"\7" * 32, "keepalive_s": 25}
    return wgquick.render(me, others, **(defaults | said))


def test_a_road_warrior() -> None:
    web = peer("web", V4, number=2, routes=(ip_network("198.51.100.0/24"),))
    assert render(peer("phone"), web, peer("db", V6, V4, number=3)) == (
        "# phone in network mesh\n"
        "[Interface]\n"
        "PrivateKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"
        "Address = 10.77.0.1/32, fd77::1/128\n"
        "MTU = 1420\n"
        "\n"
        "# web\n"
        "[Peer]\n"
        "PublicKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n"
        "AllowedIPs = 10.77.0.2/32, fd77::2/128, 198.51.100.0/24\n"
        "Endpoint = 192.0.2.9:51820\n"
        "PersistentKeepalive = 25\n"
        "\n"
        "# db\n"
        "[Peer]\n"
        "PublicKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n"
        "AllowedIPs = 10.77.0.3/32, fd77::3/128\n"
        "Endpoint = [2001:db8::9]:51821\n"
        "PersistentKeepalive = 25\n"
    )


def test_a_peer_with_an_endpoint_listens_there_and_needs_no_keepalive() -> None:
    text = render(peer("router", V4), peer("web", V6, V4, number=2))
    assert "ListenPort = 51820\n" in text
    assert "PersistentKeepalive" not in text
    assert "Endpoint = 192.0.2.9:51820\n" in text  # of the family that the router has


def test_of_another_family_is_better_than_nothing() -> None:
    assert "Endpoint = [2001:db8::9]:51821\n" in render(peer("router", V4), peer("web", V6, number=2))


def test_two_that_nobody_can_reach_can_not_meet() -> None:
    text = render(peer("phone"), peer("tablet", number=2), peer("laptop", number=3))
    assert "[Peer]" not in text
    assert text.endswith("\n\n# Without an endpoint, as this peer is, and so left out: tablet, laptop\n")
    met = render(peer("router", V4), peer("tablet", number=2))
    assert "# tablet\n[Peer]\n" in met
    assert "Endpoint =" not in met
    assert "left out" not in met


def test_no_keepalive() -> None:
    assert "Keepalive" not in render(peer("phone"), peer("web", V4, number=2), keepalive_s=0)


def test_without_the_private_key_it_says_what_to_put() -> None:
    text = render(peer("phone"), private_key=b"")
    public = wgquick.key_text(b"\1" * 32)
    assert f"\n# PrivateKey = put the one here whose public key is {public}\n" in text
    assert "\nPrivateKey" not in text


@pytest.mark.parametrize(
    ("network", "reported", "mtu"),
    [
        (0, [], 1420),
        (0, [0, 1380, 8920], 1380),
        (0, [8920], 1420),
        (8920, [1380], 8920),
    ],
)
def test_the_mtu_is_one_that_all_take(network: int, reported: list[int], mtu: int) -> None:
    assert wgquick.safe_mtu(network, reported) == mtu


def test_keys() -> None:
    key = bytes(range(32))
    assert wgquick.key_value(wgquick.key_text(key)) == key


TEXT = wgquick.key_text(bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        TEXT[:-1],
        TEXT + "\n",
        " " + TEXT,
        TEXT[:-2] + "9=",  # bits behind the last byte
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        "ä" * 44,
        "-" + TEXT[1:],
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="not a WireGuard key"):
        wgquick.key_value(text)
