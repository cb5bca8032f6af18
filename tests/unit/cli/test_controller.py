import json
from types import SimpleNamespace

import pytest

from overmesh.cli import controller as verbs
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl

ONE = admin_pb2.Controller(
    id="abcdefgh23456722",
    mesh=["192.0.2.1:7443", "[2001:db8::1]:7443"],
    join=["192.0.2.1:7442"],
    here=True,
    agents=12,
    revision=345,
    since=NOW - 120,
    version="0.1.0",
)
LOST = admin_pb2.Controller(
    id="bcdefgh234567222",
    mesh=["192.0.2.2:7443"],
    join=["192.0.2.2:7442"],
    unanswered="no connection within 2 s",
)

UNHEARD = mesh_pb2.Problem(subject="store", reason="not heard for 24 s: it can't be reached")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "time", SimpleNamespace(time=lambda: NOW))


def test_list(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListControllers"] = admin_pb2.ListControllersReply(controllers=[ONE, LOST])
    head, first, second, third = meshctl("controller", "list").out.splitlines()
    assert head.split("  ")[0] == "ID"
    places = ["abcdefgh23456722", "192.0.2.1:7443", "192.0.2.1:7442"]
    assert first.split() == [*places, "for", "2m,", "here", "12", "345", "0.1.0"]
    assert second.split() == ["[2001:db8::1]:7443"]
    assert "no connection within 2 s" in third


def test_list_for_machines(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListControllers"] = admin_pb2.ListControllersReply(controllers=[ONE, LOST])
    one, lost = json.loads(meshctl("controller", "list", "--json").out)["controllers"]
    assert (one["here"], one["answers"], one["agents"], one["since"]) == (True, True, 12, NOW - 120)
    assert (lost["answers"], lost["reason"], lost["since"]) == (False, "no connection within 2 s", None)


def test_one_that_does_not_hear_of_its_store(controller: Fake, meshctl: Meshctl) -> None:
    cut_off = admin_pb2.Controller()
    cut_off.MergeFrom(ONE)
    cut_off.problems.append(UNHEARD)
    controller.answers["ListControllers"] = admin_pb2.ListControllersReply(controllers=[cut_off])
    line = meshctl("controller", "list").out.splitlines()[-1]
    assert line == "! controller abcdefgh23456722: store: not heard for 24 s: it can't be reached"
    (one,) = json.loads(meshctl("controller", "list", "--json").out)["controllers"]
    assert one["problems"] == [{"subject": "store", "reason": UNHEARD.reason}]
