import json

from overmesh.errors import StateError
from overmesh.proto import agent_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl


def test_new_keys_and_how_long_the_old_ones_are_good(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["RotateKeys"] = agent_pb2.RotateKeysReply(until=NOW + 600)
    ran = meshctl("node", "rotate-keys", "--grace", "10m")
    assert ran.code == 0
    assert agent.requests[0].grace_seconds == 600
    assert "The old ones stay good for 10m" in ran.out
    assert "WireGuard" not in ran.out
    ran = meshctl("node", "rotate-keys", "--json")
    assert agent.requests[1].grace_seconds == 3600
    assert json.loads(ran.out) == {"until": NOW + 600, "stock_peers": []}


def test_stock_peers_are_named(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["RotateKeys"] = agent_pb2.RotateKeysReply(until=NOW + 3600, stock_peers=["phone", "router"])
    out = meshctl("node", "rotate-keys").out
    assert "know the old key alone: phone, router." in out
    assert "meshctl peer config" in out


def test_what_it_refuses(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["RotateKeys"] = StateError("this host's keys are being changed already", "see it")
    ran = meshctl("node", "rotate-keys")
    assert (ran.code, ran.out) == (1, "")
    assert "being changed already. See it." in ran.err
    assert meshctl("node", "rotate-keys", "--grace", "soon").code == 2


def test_status_shows_the_age_of_keys_and_a_change_of_them(agent: Fake, meshctl: Meshctl) -> None:
    def keys(**fields: object) -> tuple[str, object]:
        agent.answers["Status"] = agent_pb2.StatusReply(membership="member", **fields)  # type: ignore[arg-type]
        line = next(line for line in meshctl("status").out.splitlines() if line.startswith("keys"))
        return line.removeprefix("keys").strip(), json.loads(meshctl("status", "--json").out)["keys"]

    assert keys() == ("age not known", {"since": None, "change": None})
    assert keys(keys_since=NOW - 86400) == ("1d old", {"since": NOW - 86400, "change": None})
    announced = agent_pb2.KeyChange(stage="announced", until=NOW + 300)
    assert keys(keys_since=NOW - 86400, key_change=announced) == (
        "1d old; changing (announced, the old ones are good for 5m)",
        {"since": NOW - 86400, "change": {"stage": "announced", "until": NOW + 300, "error": None}},
    )
    prepared = agent_pb2.KeyChange(stage="prepared", error="no controller answers")
    assert keys(key_change=prepared) == (
        "age not known; changing (prepared): no controller answers",
        {"since": None, "change": {"stage": "prepared", "until": None, "error": "no controller answers"}},
    )
