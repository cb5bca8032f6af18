import json
from typing import Any

import pytest

from overmesh.errors import NotFoundError
from overmesh.proto import agent_pb2, mesh_pb2
from tests.unit.cli.conftest import Fake, Meshctl

PATH = "plain geneve to 192.0.2.7:6081, answered by its fastpath"


def reply(sequence: int, rtt_ns: int) -> agent_pb2.PingReply:
    return agent_pb2.PingReply(
        sequence=sequence, answered=rtt_ns > 0, rtt_ns=rtt_ns, peer="web2", address="10.77.0.2", path=PATH
    )


def test_replies_and_summary(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Ping"] = [reply(1, 184_000), reply(2, 0), reply(3, 12_345_000)]
    ran = meshctl("ping", "web2", "-c", "3", "-i", "0.01")
    assert ran.code == 0
    assert ran.out == (
        f"web2 (10.77.0.2) seq=1 time=0.184 ms via {PATH}\n"
        "no answer from web2 (10.77.0.2) seq=2\n"
        f"web2 (10.77.0.2) seq=3 time=12.3 ms via {PATH}\n"
        "\n"
        "web2: 3 sent, 2 answered, 33% lost; min/avg/max 0.184 ms / 6.264 ms / 12.3 ms\n"
    )
    assert agent.requests == [agent_pb2.PingRequest(peer="web2", count=3, interval_ms=10, timeout_ms=2000)]


def test_json_lines(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Ping"] = [reply(1, 184_000), reply(2, 0)]
    first, second, last = map(json.loads, meshctl("ping", "web2", "--json").out.splitlines())
    assert first == {
        "sequence": 1, "answered": True, "rtt_ns": 184_000, "peer": "web2",
        "address": "10.77.0.2", "path": PATH,
    }  # fmt: skip
    assert (second["answered"], second["rtt_ns"]) == (False, None)
    assert last == {
        "summary": {
            "sent": 2, "answered": 1, "min_ns": 184_000, "avg_ns": 184_000, "max_ns": 184_000,
            "cause": None, "fix": None,
        }
    }  # fmt: skip


def test_no_answer_is_exit_code_1(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Ping"] = [reply(1, 0)]
    agent.answers["Status"] = agent_pb2.StatusReply()
    ran = meshctl("ping", "web2", "-c", "1")
    assert ran.code == 1
    assert ran.out.endswith(
        "\nweb2: 1 sent, 0 answered, 100% lost\nweb2 is not in the map any more. See meshctl status.\n"
    )


def peer(**fields: Any) -> agent_pb2.Peer:
    said: dict[str, Any] = {
        "name": "web2",
        "node_id": "id2",
        "mode": mesh_pb2.MODE_SEALED,
        "endpoint": "192.0.2.7:51820",
        "endpoints": ["192.0.2.7:51820", "192.0.2.7:51821"],
        "last_handshake_seconds": 20,
        "last_heard_seconds": 40,
    }
    return agent_pb2.Peer(**(said | fields))


STOCK = {"kind": mesh_pb2.KIND_WIREGUARD}
NEVER = {"last_heard_seconds": -1, "last_handshake_seconds": -1}


@pytest.mark.parametrize(
    ("fields", "asked", "line"),
    [
        ({"endpoint": ""}, "web2", "no endpoint of web2 is known. On web2, say where it is reached"),
        (NEVER, "web2", "there is no session with web2: no handshake was answered. See that its agent runs"),
        (NEVER | {"mode": mesh_pb2.MODE_PLAIN}, "id2", "web2 was never heard. See that its agent runs"),
        ({}, "web2", "and that nothing shuts UDP to 192.0.2.7:51820-51821."),
        ({}, "web2", "web2 was last heard 40s ago. See"),
        ({"last_heard_seconds": 3}, "id2", "web2 was heard 3s ago, but its answers come too late or not"),
        ({"last_heard_seconds": 20}, "10.77.0.2", "the fastpath of web2 was heard 20s ago: its host may not"),
        ({"last_heard_seconds": 20}, "web2", "web2 was last heard 20s ago. See"),
        (STOCK | NEVER, "web2", "was never heard. Switch WireGuard on there, with what `meshctl peer config"),
        (STOCK, "web2", "web2, a stock WireGuard peer, was last heard 40s ago. It may be asleep"),
    ],
)
def test_no_answer_has_a_likely_cause(
    fields: dict[str, Any], asked: str, line: str, agent: Fake, meshctl: Meshctl
) -> None:
    agent.answers["Ping"] = [reply(1, 0), reply(2, 0)]
    agent.answers["Status"] = agent_pb2.StatusReply(peers=[peer(name="web1"), peer(**fields)])
    said = meshctl("ping", asked).out.partition("lost\n")[2].replace("\n", " ")
    assert line in said
    summary = json.loads(meshctl("ping", asked, "--json").out.splitlines()[-1])["summary"]
    assert said.lower() == f"{summary['cause']}. {summary['fix']}. ".lower()


def test_no_such_peer(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Ping"] = NotFoundError("no peer 'x' in the map", "peers: web2")
    ran = meshctl("ping", "x")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "meshctl: no peer 'x' in the map. Peers: web2.\n"


@pytest.mark.parametrize("option", [["-c", "-1"], ["-i", "0"], ["--timeout", "0"]])
def test_numbers_that_make_no_sense(option: list[str], meshctl: Meshctl) -> None:
    assert meshctl("ping", "x", *option).code == 2
