import json
from typing import Any

from overmesh.errors import NotFoundError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl


def node(name: str = "web1", **fields: Any) -> admin_pb2.Node:
    defaults: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "network": "mesh",
        "public_key": bytes(range(32)),
        "addresses": ["10.77.0.2", "fd00::2"],
        "endpoints": [mesh_pb2.Endpoint(address="2001:db8::2", port=6081)],
        "online": True,
        "in_step": True,
        "acked_revision": 9,
        "serial": 3,
        "not_after": NOW + 7 * 86400,
        "backend": "tun",
        "backend_reason": "the only one",
        "mtu": 1420,
        "version": "0.1.0",
        "suites": [mesh_pb2.SUITE_CHACHA, mesh_pb2.SUITE_AES],
        "lanes": 2,
        "host_id": "0123456789abcdef",
        "connected_from": "192.0.2.7",
        "connected_since": NOW - 3600,
    }
    return admin_pb2.Node(**(defaults | fields))


BAD = mesh_pb2.Problem(subject="node/x", reason="not signed by this mesh's root")


def test_list(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(
        revision=9,
        nodes=[
            node(),
            node("web2", online=False, in_step=False, acked_revision=4, last_seen=NOW - 300, problems=[BAD]),
            node("web3", online=False, in_step=False, acked_revision=0, endpoints=[], backend="", version=""),
            admin_pb2.Node(name="phone", addresses=["10.77.0.9"], kind=mesh_pb2.KIND_WIREGUARD),
        ],
    )
    ran = meshctl("node", "list")
    assert ran.code == 0
    assert ran.out == (
        "NAME   ADDRESSES  ENDPOINT            STATE                 MAP      FASTPATH  VERSION\n"
        "web1   10.77.0.2  [2001:db8::2]:6081  online                in step  tun       0.1.0\n"
        "       fd00::2\n"
        "web2   10.77.0.2  [2001:db8::2]:6081  offline, seen 5m ago  at 4     tun       0.1.0\n"
        "       fd00::2\n"
        "web3   10.77.0.2                      offline               at 0\n"
        "       fd00::2\n"
        "phone  10.77.0.9                      WireGuard peer\n"
        "! web2: node/x: not signed by this mesh's root\n"
        "4 nodes at revision 9\n"
    )
    assert controller.requests == [admin_pb2.ListNodesRequest(network="mesh")]


def test_json_is_the_same_for_list_and_show(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(revision=9, nodes=[node(problems=[BAD])])
    listed = json.loads(meshctl("node", "list", "--json").out)
    assert listed["revision"] == 9
    assert json.loads(meshctl("node", "show", "web1", "--json").out) == listed["nodes"][0]
    assert listed["nodes"][0] == {
        "id": "id-web1",
        "name": "web1",
        "network": "mesh",
        "kind": "agent",
        "public_key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "addresses": ["10.77.0.2", "fd00::2"],
        "routes": [],
        "tags": [],
        "endpoints": [{"address": "2001:db8::2", "port": 6081}],
        "lanes": 2,
        "suites": ["chacha", "aes"],
        "online": True,
        "last_seen": None,
        "in_step": True,
        "acked_revision": 9,
        "backend": "tun",
        "backend_reason": "the only one",
        "mtu": 1420,
        "version": "0.1.0",
        "serial": 3,
        "not_after": NOW + 7 * 86400,
        "host": {"id": "0123456789abcdef", "from": "192.0.2.7", "since": NOW - 3600},
        "copies": [],
        "problems": [{"subject": "node/x", "reason": "not signed by this mesh's root"}],
    }


def test_show(controller: Fake, meshctl: Meshctl) -> None:
    copy = admin_pb2.Copy(host_id="fedcba9876543210", since=NOW - 60, last_seen=NOW, **{"from": "192.0.2.9"})
    twin = admin_pb2.Copy(host_id="0123456789abcdef", instance="5e", since=NOW - 60, last_seen=NOW)
    shown = node(tags=["rack:7"], copies=[copy, twin])
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(revision=9, nodes=[shown])
    assert meshctl("node", "show", "web1", "--network", "lab").out == (
        "name        web1\n"
        "id          id-web1\n"
        "network     mesh\n"
        "state       online\n"
        "addresses   10.77.0.2\n"
        "            fd00::2\n"
        "routes      none\n"
        "tags        rack:7\n"
        "endpoints   [2001:db8::2]:6081\n"
        "seals with  chacha, aes\n"
        "public key  AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
        "record      serial 3, valid for 7d\n"
        "map         in step at 9\n"
        "fastpath    tun: the only one\n"
        "lanes       2\n"
        "mtu         1420\n"
        "version     0.1.0\n"
        "host        0123456789ab, bound 1h ago from 192.0.2.7\n"
        "copy        fedcba987654 from 192.0.2.9, first 1m ago, last now: quarantined\n"
        "copy        0123456789ab from elsewhere with the same machine id, first 1m ago, last now: "
        "quarantined\n"
    )
    assert controller.requests == [admin_pb2.ListNodesRequest(network="lab", node="web1")]


def test_remove(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RemoveNode"] = admin_pb2.RemoveNodeReply(node=node(), revision=12)
    assert meshctl("node", "remove", "web1").out == (
        "Removed web1 (10.77.0.2, fd00::2) at revision 12.\n"
        "See that all agents know: meshctl wait --revision 12\n"
    )
    shown = json.loads(meshctl("node", "remove", "web1", "--json").out)
    assert (shown["node"]["name"], shown["revision"]) == ("web1", 12)


def test_no_such_node(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RemoveNode"] = NotFoundError("no node x", "see meshctl node list")
    ran = meshctl("node", "remove", "x")
    assert (ran.code, ran.err) == (1, "meshctl: no node x. See meshctl node list.\n")
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(revision=9)
    ran = meshctl("node", "show", "x")
    assert (ran.code, ran.err) == (1, "meshctl: no node 'x' in network mesh. See meshctl node list.\n")


def test_a_wireguard_peer_is_not_shown_as_an_agent_that_is_away(controller: Fake, meshctl: Meshctl) -> None:
    phone = node("phone", kind=mesh_pb2.KIND_WIREGUARD, online=False, in_step=False, endpoints=[])
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(revision=9, nodes=[phone])
    shown = meshctl("node", "show", "phone").out
    assert "state       WireGuard peer\n" in shown
    assert "map" not in shown
    assert json.loads(meshctl("node", "show", "phone", "--json").out)["kind"] == "wireguard"


def test_what_is_wrong_with_the_store_is_said_in_both_outputs(controller: Fake, meshctl: Meshctl) -> None:
    forged = mesh_pb2.Problem(subject="node/x", reason="forged")
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(
        revision=9, nodes=[node(problems=[BAD])], problems=[forged]
    )
    for verb in (("list",), ("show", "web1")):
        assert "! node/x: forged\n" in meshctl("node", *verb).out
        problems = json.loads(meshctl("node", *verb, "--json").out)["problems"]
        assert problems[-1] == {"subject": "node/x", "reason": "forged"}
