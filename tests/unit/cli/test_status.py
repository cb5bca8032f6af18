import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from overmesh.cli.drops import meaning
from overmesh.proto import agent_pb2, mesh_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl

REASONS = Path(__file__).parents[3] / "fastpath" / "core" / "src" / "drops.rs"


def status(**fields: Any) -> agent_pb2.StatusReply:
    defaults: dict[str, Any] = {
        "name": "web1",
        "node_id": "ifz7ki43",
        "network": "mesh",
        "network_number": 1,
        "mode": mesh_pb2.MODE_SEALED,
        "membership": "member",
        "addresses": ["10.77.0.1", "fd00::1"],
        "interface": "om0",
        "mtu": 1420,
        "mtu_reason": "eth0 has 1500, less 80 for the tunnel",
        "fastpath": agent_pb2.Fastpath(
            running=True,
            pid=22,
            backend="tun",
            reason="the only one",
            uptime_seconds=3700,
            restarts=1,
            lanes=2,
            listening=["0.0.0.0:51820", "[::]:51820", "0.0.0.0:51821", "[::]:51821"],
            socket_buffers=agent_pb2.SocketBuffers(receive=8 << 20, send=8 << 20, wanted=8 << 20),
            offloads=[
                agent_pb2.Offload(name="tso", on=True),
                agent_pb2.Offload(name="uso", reason="the kernel is older than 6.8.5"),
                agent_pb2.Offload(name="gso", on=True),
            ],
        ),
        "revision": 9,
        "digest": b"\xab\xcd",
        "map_age_seconds": 4.2,
        "controller": agent_pb2.Controller(address="192.0.2.1:7443", connected=True, since_seconds=60),
        "endpoints": [mesh_pb2.Endpoint(address="192.0.2.2", port=51820)],
        "certificate_until": int(time.time()) + 12 * 3600 + 30,
        "membership_until": int(time.time()) + 800 * 86400 + 30,
        "keys_since": NOW - 3 * 86400,
        "version": "0.1.0",
        "peers": [
            agent_pb2.Peer(
                name="web2",
                node_id="x",
                addresses=["10.77.0.2", "fd00::2"],
                endpoint="192.0.2.7:7000",
                endpoints=["192.0.2.7:7000", "192.0.2.7:7001"],
                mode=mesh_pb2.MODE_SEALED,
                suite=mesh_pb2.SUITE_AES,
                last_handshake_seconds=72,
                path_mtu=1420,
                path_mtu_probed=True,
                last_heard_seconds=2,
                tx_packets=10,
                tx_bytes=2048,
                rx_packets=9,
                rx_bytes=999,
                drops={"too_big": 2, "send_blocked": 1},
            ),
            agent_pb2.Peer(
                name="web3",
                addresses=["10.77.0.3"],
                mode=mesh_pb2.MODE_SEALED,
                suite=mesh_pb2.SUITE_CHACHA,
                last_handshake_seconds=-1,
                path_mtu=1420,
                last_heard_seconds=-1,
            ),
        ],
        "drops": {"too_big": 2, "no_route": 0, "brand_new": 5},
    }
    return agent_pb2.StatusReply(**(defaults | fields))


def test_page(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status()
    ran = meshctl("status")
    assert ran.code == 0
    assert ran.out == (
        "node        web1 (ifz7ki43) in network mesh\n"
        "state       member\n"
        "addresses   10.77.0.1, fd00::1\n"
        "packets     sealed: encrypted (WireGuard, AES-256-GCM and ChaCha20-Poly1305)\n"
        "interface   om0, MTU 1420: eth0 has 1500, less 80 for the tunnel\n"
        "fastpath    tun: the only one; 2 lanes on UDP ports 51820 to 51821; "
        "up 1h 1m, pid 22, restarted 1 time\n"
        "offloads    tso, gso on; uso off: the kernel is older than 6.8.5\n"
        "endpoints   192.0.2.2:51820\n"
        "map         revision 9, confirmed 4s ago\n"
        "controller  192.0.2.1:7443, connected for 1m\n"
        "trust       certificate for 12h, membership for 800d\n"
        "keys        3d old\n"
        "version     0.1.0\n"
        "\n"
        "PEER  ADDRESSES  ENDPOINT             MODE            SESSION     LAST HEARD  MTU"
        "              SENT  RECEIVED  DROPS\n"
        "web2  10.77.0.2  192.0.2.7:7000-7001  sealed, aes     1m 12s old  2s ago      1420"
        "          2.0 KiB     999 B      3\n"
        "      fd00::2\n"
        "web3  10.77.0.3  not known            sealed, chacha  none yet    never       1420 assumed"
        "      0 B       0 B      0\n"
        "\n"
        "DROPPED    PACKETS  MEANING\n"
        "brand_new        5\n"
        "too_big          2  larger than the network's MTU, or than the underlay takes\n"
    )


def test_json(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status()
    shown = json.loads(meshctl("status", "--json").out)
    assert set(shown) == {
        "name", "node_id", "network", "network_number", "mode", "membership", "working", "addresses",
        "interface", "mtu", "mtu_reason", "fastpath", "endpoints", "revision", "digest", "map_age_seconds",
        "controller", "peers", "drops", "problems", "certificate_until", "membership_until",
            "keys",
        "version",
    }  # fmt: skip
    assert shown["working"] is True
    assert shown["digest"] == "abcd"
    assert shown["drops"] == {"brand_new": 5, "no_route": 0, "too_big": 2}
    assert shown["fastpath"]["pid"] == 22
    assert (shown["fastpath"]["lanes"], shown["fastpath"]["ports"]) == (2, [51820, 51821])
    assert shown["fastpath"]["socket_buffers"]["wanted"] == 8 << 20
    assert shown["peers"][0]["endpoints"] == ["192.0.2.7:7000", "192.0.2.7:7001"]
    assert [peer["last_heard_seconds"] for peer in shown["peers"]] == [2, None]
    assert shown["peers"][0]["tx_bytes"] == 2048
    assert [
        (peer["kind"], peer["mode"], peer["suite"], peer["last_handshake_seconds"], peer["path_mtu_probed"])
        for peer in shown["peers"]
    ] == [("agent", "sealed", "aes", 72, True), ("agent", "sealed", "chacha", None, False)]


def peers_line(meshctl: Meshctl) -> list[str]:
    """Return the first peer's cells."""
    lines = meshctl("status").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("PEER"))
    return re.split(r" {2,}", lines[at + 1])


def test_a_wireguard_peer_shows_as_such(agent: Fake, meshctl: Meshctl) -> None:
    phone = agent_pb2.Peer(
        name="phone",
        addresses=["10.77.0.9"],
        mode=mesh_pb2.MODE_SEALED,
        suite=mesh_pb2.SUITE_CHACHA,
        kind=mesh_pb2.KIND_WIREGUARD,
        last_handshake_seconds=400,
        last_heard_seconds=300,
    )
    agent.answers["Status"] = status(peers=[phone])
    assert peers_line(meshctl)[:6] == [
        "phone (WireGuard)",
        "10.77.0.9",
        "not known",
        "sealed, chacha",
        "ended (6m 40s old)",
        "5m ago",
    ]
    assert json.loads(meshctl("status", "--json").out)["peers"][0]["kind"] == "wireguard"


@pytest.mark.parametrize(
    ("endpoints", "shown"),
    [
        (["192.0.2.2:51820"], "192.0.2.2:51820"),
        (["[2001:db8::2]:51820", "[2001:db8::2]:51821"], "[2001:db8::2]:51820-51821"),
        (["192.0.2.2:51820", "192.0.2.2:51821", "192.0.2.2:51822"], "192.0.2.2:51820-51822"),
        (["192.0.2.2:4000", "192.0.2.2:51821"], "192.0.2.2:4000,51821"),
        (["192.0.2.2:51820", "192.0.2.9:51821"], "192.0.2.2:51820"),
    ],
)
def test_the_lanes_of_a_peer(endpoints: list[str], shown: str, agent: Fake, meshctl: Meshctl) -> None:
    peer = agent_pb2.Peer(name="web2", addresses=["10.77.0.2"], endpoints=endpoints)
    agent.answers["Status"] = status(peers=[peer])
    assert peers_line(meshctl)[2] == shown
    assert ("192.0.2.9:51821" in meshctl("status").out) == ("192.0.2.9:51821" in endpoints)


def test_small_buffers_are_said_and_no_problem(agent: Fake, meshctl: Meshctl) -> None:
    small = agent_pb2.SocketBuffers(receive=208 << 10, send=8 << 20, wanted=8 << 20)
    agent.answers["Status"] = status(
        fastpath=agent_pb2.Fastpath(running=True, backend="tun", reason="x", socket_buffers=small)
    )
    ran = meshctl("status")
    assert ran.code == 0
    assert "\nbuffers     208.0 KiB in, 8.0 MiB out instead of 8.0 MiB: bursts may be dropped" in ran.out


def test_plain_says_that_it_is_not_encrypted(agent: Fake, meshctl: Meshctl) -> None:
    peer = agent_pb2.Peer(
        name="web2", addresses=["10.77.0.2"], endpoints=["192.0.2.2:6081"], mode=mesh_pb2.MODE_PLAIN
    )
    agent.answers["Status"] = status(mode=mesh_pb2.MODE_PLAIN, peers=[peer])
    assert "packets     plain: not encrypted (Geneve)\n" in meshctl("status").out
    assert peers_line(meshctl)[3:5] == ["plain", "now"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"membership": "removed"}, "state       removed"),
        ({"fastpath": agent_pb2.Fastpath(running=False)}, "fastpath    down"),
        (
            {"problems": [mesh_pb2.Problem(subject="node/x", reason="[forged]")]},
            "! node/x: [forged]",
        ),
    ],
)
def test_not_working_is_exit_code_3(fields: dict[str, Any], line: str, agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status(**fields)
    ran = meshctl("status")
    assert ran.code == 3
    assert line in ran.out.splitlines()
    assert json.loads(meshctl("status", "--json").out)["working"] is False


def test_working_without_a_controller(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status(
        map_age_seconds=-1,
        controller=agent_pb2.Controller(address="192.0.2.1:7443", error="no route", since_seconds=5),
    )
    ran = meshctl("status")
    assert ran.code == 0
    assert "controller  192.0.2.1:7443, not connected for 5s: no route" in ran.out
    assert "map         revision 9, confirmed never" in ran.out


def test_what_has_run_out(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status(certificate_until=int(time.time()) - 7200)
    assert "certificate ended 2h ago, membership for 800d" in meshctl("status").out


def test_alone(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status(peers=[], drops={})
    assert meshctl("status").out.endswith("version     0.1.0\n\nNo peers yet.\n")


def test_meanings_are_those_of_the_fastpath() -> None:
    listed = re.search(r"^drop_reasons! \{\n(.*?)^\}", REASONS.read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    reasons = dict(re.findall(r'"([a-z_]+)"\s+"([^"]+)"', listed[1]))
    assert len(reasons) > 10
    assert {name: meaning(name) for name in reasons} == reasons
