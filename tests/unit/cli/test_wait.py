import json

from overmesh.proto import admin_pb2, agent_pb2
from tests.unit.cli.conftest import Fake, Meshctl

BEHIND = admin_pb2.WaitReply(
    revision=9,
    agents=3,
    behind=[
        admin_pb2.Behind(name="web1", acked_revision=7, reason="its last ack is of 7"),
        admin_pb2.Behind(name="web2", acked_revision=0, reason="nothing acked"),
    ],
)


def test_converged(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["Wait"] = admin_pb2.WaitReply(converged=True, revision=9, agents=3)
    ran = meshctl("wait", "--revision", "9", "--timeout", "2m", "--network", "lab")
    assert (ran.code, ran.out) == (0, "3 agents in step at revision 9.\n")
    assert controller.requests == [admin_pb2.WaitRequest(network="lab", revision=9, timeout_ms=120_000)]


def test_who_is_behind_and_why(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["Wait"] = BEHIND
    ran = meshctl("wait", "--converged")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        "meshctl: revision 9 is not applied everywhere: web1 is at 7: its last ack is of 7; "
        "web2: nothing acked. See meshctl node list.\n"
    )
    ran = meshctl("wait", "--converged", "--json")
    assert ran.code == 3
    assert json.loads(ran.out) == {
        "scope": "network",
        "converged": False,
        "revision": 9,
        "agents": 3,
        "behind": [
            {"name": "web1", "acked_revision": 7, "reason": "its last ack is of 7"},
            {"name": "web2", "acked_revision": 0, "reason": "nothing acked"},
        ],
    }
    assert json.loads(ran.err)["error"]["type"] == "NotYetError"


def test_the_controller_is_asked_where_there_are_both(
    controller: Fake, agent: Fake, meshctl: Meshctl
) -> None:
    controller.answers["Wait"] = admin_pb2.WaitReply(converged=True, revision=9, agents=1)
    assert meshctl("wait", "--converged").out == "1 agent in step at revision 9.\n"
    assert agent.requests == []


def test_revision_on_a_host_without_controller(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Wait"] = agent_pb2.WaitReply(reached=True, revision=9)
    ran = meshctl("wait", "--revision", "9", "--timeout", "3s")
    assert (ran.code, ran.out) == (0, "This host is in step at revision 9.\n")
    assert agent.requests == [agent_pb2.WaitRequest(revision=9, timeout_ms=3000)]
    agent.answers["Wait"] = agent_pb2.WaitReply(revision=8, reason="not at 9")
    ran = meshctl("wait", "--revision", "9")
    assert (ran.code, ran.err) == (3, "meshctl: this host is at revision 8: not at 9. See meshctl status.\n")


def test_converged_on_a_host_without_controller(agent: Fake, meshctl: Meshctl) -> None:
    agent.answers["Wait"] = agent_pb2.WaitReply(reached=True, revision=9)
    assert json.loads(meshctl("wait", "--converged", "--json").out) == {
        "scope": "host",
        "converged": True,
        "revision": 9,
    }
    assert agent.requests == [agent_pb2.WaitRequest(timeout_ms=30_000)]
    agent.answers["Wait"] = agent_pb2.WaitReply(revision=9, reason="the store can't be asked: it is away")
    ran = meshctl("wait", "--converged")
    said = "meshctl: this host is at revision 9: the store can't be asked: it is away. See meshctl status.\n"
    assert (ran.code, ran.err) == (3, said)
