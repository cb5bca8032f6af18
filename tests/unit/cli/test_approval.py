import json
from typing import Any

from overmesh.errors import NotFoundError
from overmesh.proto import admin_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl


def host(name: str = "web1", **fields: Any) -> admin_pb2.Pending:
    defaults: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "network": "mesh",
        "public_key": b"\1\2",
        "fingerprint": b"\3",
        "host_id": "m",
        "from": "192.0.2.7",
        "token": "3f9a0c27d1",
        "tags": ["rack:7"],
        "asked": NOW - 60,
        "expires": NOW + 60,
        "state": "waiting",
    }
    return admin_pb2.Pending(**(defaults | fields))


def test_pending(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListPending"] = admin_pb2.ListPendingReply(
        pending=[host(), host("b", state="denied", decided_by="operator al")]
    )
    assert meshctl("node", "pending").out == (
        "NAME  ID       STATE                  ASKED   FROM       TOKEN       TAGS\n"
        "web1  id-web1  waiting                1m ago  192.0.2.7  3f9a0c27d1  rack:7\n"
        "b     id-b     denied by operator al  1m ago  192.0.2.7  3f9a0c27d1  rack:7\n"
    )
    assert controller.requests == [admin_pb2.ListPendingRequest(network="mesh")]
    (first, _) = json.loads(meshctl("node", "pending", "--json").out)["pending"]
    assert (first["id"], first["public_key"], first["tls_fingerprint"]) == ("id-web1", "AQI=", "03")
    assert (first["from"], first["decided_by"]) == ("192.0.2.7", None)


def test_nobody_waits(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListPending"] = admin_pb2.ListPendingReply()
    assert meshctl("node", "pending").out == "No host waits for approval.\n"


def test_decisions(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ApproveNode"] = admin_pb2.DecideReply(pending=host(state="approved"), revision=7)
    controller.answers["DenyNode"] = admin_pb2.DecideReply(pending=host(state="denied"), revision=8)
    assert meshctl("node", "approve", "web1").out == "Approved web1 (id-web1).\n"
    assert meshctl("node", "deny", "web1", "--network", "lab").out == "Denied web1 (id-web1).\n"
    assert controller.requests == [
        admin_pb2.DecideRequest(network="mesh", node="web1"),
        admin_pb2.DecideRequest(network="lab", node="web1"),
    ]
    assert json.loads(meshctl("node", "approve", "web1", "--json").out)["revision"] == 7


def test_refused(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ApproveNode"] = NotFoundError("no host 'x' waits for approval", "see it")
    ran = meshctl("node", "approve", "x")
    assert (ran.code, ran.err) == (1, "meshctl: no host 'x' waits for approval. See it.\n")
