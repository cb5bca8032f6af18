import json
import re
from pathlib import Path
from typing import Any

import pytest

from overmesh.cli.drops import meaning
from overmesh.proto import agent_pb2, mesh_pb2
from tests.unit.cli.conftest import Fake, Meshctl

REASONS = Path(__file__).parents[3] / "fastpath" / "core" / "src" / "drops.rs"


def status(**fields: Any) -> agent_pb2.StatusReply:
    defaults: dict[str, Any] = {
        "name": "web1",
        "node_id": "ifz7ki43",
        "network": "mesh",
        "network_number": 1,
        "mode": mesh_pb2.MODE_PLAIN,
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
        "endpoints": [mesh_pb2.Endpoint(address="192.0.2.2", port=6081)],
        "version": "0.1.0",
        "peers": [
            agent_pb2.Peer(
                name="web2",
                node_id="x",
                addresses=["10.77.0.2", "fd00::2"],
                endpoint="[2001:db8::2]:6081",
                mode=mesh_pb2.MODE_PLAIN,
                last_heard_seconds=2,
                tx_packets=10,
                tx_bytes=2048,
                rx_packets=9,
                rx_bytes=999,
                drops={"too_big": 2, "send_blocked": 1},
            ),
            agent_pb2.Peer(
                name="web3", addresses=["10.77.0.3"], mode=mesh_pb2.MODE_PLAIN, last_heard_seconds=-1
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
        "interface   om0, MTU 1420: eth0 has 1500, less 80 for the tunnel\n"
        "fastpath    tun: the only one; up 1h 1m, pid 22, restarted 1 time\n"
        "offloads    tso, gso on; uso off: the kernel is older than 6.8.5\n"
        "endpoints   192.0.2.2:6081\n"
        "map         revision 9, confirmed 4s ago\n"
        "controller  192.0.2.1:7443, connected for 1m\n"
        "version     0.1.0\n"
        "\n"
        "PEER  ADDRESSES  ENDPOINT            MODE   LAST HEARD     SENT  RECEIVED  DROPS\n"
        "web2  10.77.0.2  [2001:db8::2]:6081  plain  2s ago      2.0 KiB     999 B      3\n"
        "      fd00::2\n"
        "web3  10.77.0.3                      plain  never           0 B       0 B      0\n"
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
        "controller", "peers", "drops", "problems", "version",
    }  # fmt: skip
    assert shown["working"] is True
    assert shown["digest"] == "abcd"
    assert shown["drops"] == {"brand_new": 5, "no_route": 0, "too_big": 2}
    assert shown["fastpath"]["pid"] == 22
    assert [peer["last_heard_seconds"] for peer in shown["peers"]] == [2, None]
    assert shown["peers"][0]["tx_bytes"] == 2048


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


def test_alone(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Status"] = status(peers=[], drops={})
    assert meshctl("status").out.endswith("version     0.1.0\n\nNo peers yet.\n")


def test_meanings_are_those_of_the_fastpath() -> None:
    listed = re.search(r"^drop_reasons! \{\n(.*?)^\}", REASONS.read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    reasons = dict(re.findall(r'"([a-z_]+)"\s+"([^"]+)"', listed[1]))
    assert len(reasons) > 10
    assert {name: meaning(name) for name in reasons} == reasons
