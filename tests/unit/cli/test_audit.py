import json
from typing import Any

import pytest

from overmesh.proto import admin_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def entry(**fields: Any) -> admin_pb2.AuditEntry:
    defaults: dict[str, Any] = {
        "id": "01a2",
        "at_ms": NOW * 1000 + 500,
        "what": "node joined",
        "network": "mesh",
        "subject": "aaaa",
        "name": "web1",
        "who": "token 3f9a0c27d1",
        "from": "192.0.2.7",
        "controller": "ctl1",
        "revision": 7,
        "genuine": True,
    }
    return admin_pb2.AuditEntry(**(defaults | fields))


def test_a_line_an_entry(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListAudit"] = [
        entry(),
        entry(what="network created", subject="mesh", name="", who="operator al", details={"mode": "plain"}),
        entry(what="node joined", genuine=False),
    ]
    lines = meshctl("audit").out.splitlines()
    moment = lines[0][:19]
    assert lines == [
        f"{moment}  node joined  web1 (aaaa) in mesh  by token 3f9a0c27d1  from 192.0.2.7  at ctl1",
        f"{moment}  network created  mesh  by operator al  from 192.0.2.7  at ctl1  mode=plain",
        f"FORGED {moment}  node joined  web1 (aaaa) in mesh  by token 3f9a0c27d1  from 192.0.2.7  at ctl1",
    ]
    assert controller.requests == [admin_pb2.AuditRequest()]


def test_what_is_asked_for(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListAudit"] = []
    assert meshctl("audit", "--since", "1h", "--node", "web1", "--follow").out == ""
    assert controller.requests == [admin_pb2.AuditRequest(since=NOW - 3600, node="web1", follow=True)]


def test_json_is_a_line_an_entry(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListAudit"] = [entry(details={"a": "b"}), entry()]
    first, _ = [json.loads(line) for line in meshctl("audit", "--json").out.splitlines()]
    assert first["at"] == NOW + 0.5
    assert (first["from"], first["details"], first["genuine"]) == ("192.0.2.7", {"a": "b"}, True)
