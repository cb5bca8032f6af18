import json
from typing import Any

from overmesh.errors import NotFoundError, StoreUnavailableError
from overmesh.proto import admin_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl

LINE = "meshctl join 192.0.2.1 --token om2.3f9a0c27d1.c2VjcmV0.cGlu"


def token(**fields: Any) -> admin_pb2.Token:
    defaults: dict[str, Any] = {
        "id": "3f9a0c27d1",
        "network": "mesh",
        "expires": NOW + 3600,
        "uses_left": 1,
        "created": NOW,
    }
    return admin_pb2.Token(**(defaults | fields))


def created(**fields: Any) -> admin_pb2.CreateTokenReply:
    return admin_pb2.CreateTokenReply(token=token(**fields), secret_token="om2.x", join_line=LINE)


def test_create_prints_a_line_to_copy(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateToken"] = created()
    ran = meshctl("token", "create")
    assert ran.out == (
        f"Type this on the new host:\n\n  {LINE}\n\nFor one host, within 1h. It is not shown again.\n"
    )
    assert (ran.code, ran.err) == (0, "")
    assert controller.requests == [admin_pb2.CreateTokenRequest(network="mesh", ttl_seconds=3600, uses=1)]


def test_create_passes_on_what_was_asked_for(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateToken"] = created(unlimited=True, uses_left=0)
    ran = meshctl(
        "token", "create", "--expires", "1h30m", "--uses", "0", "--tag", "x", "--tag", "y", "--network", "lab"
    )
    assert controller.requests[0] == admin_pb2.CreateTokenRequest(
        network="lab", ttl_seconds=5400, uses=0, tags=["x", "y"]
    )
    assert "For any number of hosts, within 1h 30m." in ran.out


def test_create_with_approval(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateToken"] = created(approval=True)
    said = meshctl("token", "create", "--require-approval").out
    assert "For one host, within 1h. Each waits for: meshctl node approve. It is not shown again.\n" in said
    assert controller.requests[0].approval


def test_create_json_has_the_parts(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["CreateToken"] = created(tags=["x"])
    assert json.loads(meshctl("token", "create", "--json").out) == {
        "id": "3f9a0c27d1",
        "network": "mesh",
        "state": "usable",
        "created": NOW,
        "expires": NOW + 3600,
        "uses_left": 1,
        "approval": False,
        "tags": ["x"],
        "secret_token": "om2.x",
        "join_line": LINE,
    }


def test_list(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListTokens"] = admin_pb2.ListTokensReply(
        tokens=[
            token(),
            token(id="aaaaaaaaaa", unlimited=True, approval=True, tags=["[rack]", "x"]),
            token(id="bbbbbbbbbb", expires=NOW - 90),
            token(id="cccccccccc", uses_left=0),
            token(id="dddddddddd", revoked=True),
        ]
    )
    assert meshctl("token", "list").out == (
        "ID          NETWORK  STATE    EXPIRES     USES LEFT  APPROVAL  TAGS\n"
        "3f9a0c27d1  mesh     usable   in 1h       1\n"
        "aaaaaaaaaa  mesh     usable   in 1h       any        needed    [rack], x\n"
        "bbbbbbbbbb  mesh     expired  1m 30s ago  1\n"
        "cccccccccc  mesh     used up  in 1h       0\n"
        "dddddddddd  mesh     revoked  in 1h       1\n"
    )
    shown = json.loads(meshctl("token", "list", "--json").out)["tokens"]
    assert [one["state"] for one in shown] == ["usable", "usable", "expired", "used up", "revoked"]
    assert shown[1]["uses_left"] is None


def test_list_of_none_says_what_to_do(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListTokens"] = admin_pb2.ListTokensReply()
    assert meshctl("token", "list").out == "No tokens. Make one: meshctl token create\n"


def test_revoke(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RevokeToken"] = admin_pb2.RevokeTokenReply(revision=7)
    assert meshctl("token", "revoke", "3f9a0c27d1").out == "Revoked 3f9a0c27d1.\n"
    assert json.loads(meshctl("token", "revoke", "3f9a0c27d1", "--json").out) == {
        "id": "3f9a0c27d1",
        "revision": 7,
    }


def test_what_the_controller_refuses_is_one_line(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RevokeToken"] = NotFoundError("no token x", "see meshctl token list")
    ran = meshctl("token", "revoke", "x")
    assert (ran.code, ran.out, ran.err) == (1, "", "meshctl: no token x. See meshctl token list.\n")


def test_with_json_a_refusal_is_an_object(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListTokens"] = StoreUnavailableError("the store is closed")
    ran = meshctl("token", "list", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert json.loads(ran.err) == {
        "error": {"type": "StoreUnavailableError", "cause": "the store is closed", "fix": "", "exit_code": 1}
    }
