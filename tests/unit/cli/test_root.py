import json
from typing import Any

import pytest

from overmesh.errors import InvalidError
from overmesh.proto import admin_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl

OLD, NEXT = "ab" * 32, "cd" * 32


def state(*roots: tuple[str, str], **fields: Any) -> admin_pb2.RootsState:
    known = [
        admin_pb2.MeshRoot(fingerprint=name, state=state, not_after=NOW + 86400, key_here=True)
        for name, state in roots
    ]
    return admin_pb2.RootsState(roots=known, **fields)


def test_at_rest(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ShowRoots"] = state((OLD, "signs"))
    ran = meshctl("root", "status")
    assert (ran.code, ran.out) == (
        0,
        "ROOT              STATE  KEY HERE  ENDS\n"
        "abababababababab  signs  yes       in 1d\n"
        "No rotation is under way.\n",
    )


@pytest.mark.parametrize(
    ("fields", "said", "following"),
    [
        (
            {"controllers": ["c2"], "agents": [admin_pb2.Behind(name="a", reason="holds revision 7")]},
            "Controllers without the newest root's key: c2\n"
            "Agents that have not heard of the newest root: a (holds revision 7)\n",
            "Next: copy root.next.key and root.next.pem to the other controllers.\n",
        ),
        (
            {"agents": [admin_pb2.Behind(name="a", reason="away")], "tokens": ["3f9a0c27d1"]},
            "Agents that have not heard of the newest root: a (away)\n"
            "Tokens that are void once the newest root signs: 3f9a0c27d1\n",
            "Next: meshctl root activate, once all agents have heard of it\n",
        ),
        ({}, "", "Next: meshctl root activate\n"),
    ],
)
def test_staged(controller: Fake, meshctl: Meshctl, fields: Any, said: str, following: str) -> None:
    controller.answers["StageRoot"] = state((OLD, "signs"), (NEXT, "next"), **fields)
    assert (
        meshctl("root", "stage").out.partition("yes       in 1d\ncd")[2].partition("\n")[2]
        == said + following
    )


def test_activated(controller: Fake, meshctl: Meshctl) -> None:
    members = [
        admin_pb2.RootsState.Member(network="mesh", name="a", id="x", online=True),
        admin_pb2.RootsState.Member(network="mesh", name="b", id="y"),
    ]
    controller.answers["ActivateRoot"] = state((OLD, "old"), (NEXT, "signs"), members=members, records=12)
    out = meshctl("root", "activate", "--force").out
    assert "Records that are still to be signed: 12\n" in out
    assert "Members that have not come over: a, b (offline)\n" in out
    assert out.endswith("Next: meshctl root retire, once all have come over\n")
    assert controller.requests == [admin_pb2.ActivateRootRequest(force=True)]


def test_json(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RetireRoot"] = state((NEXT, "signs"))
    assert json.loads(meshctl("root", "retire", "--json").out) == {
        "roots": [{"fingerprint": NEXT, "state": "signs", "not_after": NOW + 86400, "key_here": True}],
        "controllers": [],
        "agents": [],
        "members": [],
        "records": 0,
        "tokens": [],
    }


def test_a_refusal(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RetireRoot"] = InvalidError("these members have not come over yet: a", "wait")
    ran = meshctl("root", "retire")
    assert (ran.code, ran.out, ran.err) == (
        1,
        "",
        "meshctl: these members have not come over yet: a. Wait.\n",
    )
