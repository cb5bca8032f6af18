"""join and leave, with the joining itself and systemd made up; tests/netns has the real ones."""

import asyncio
import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from overmesh.agent.join import Joined
from overmesh.cli import systemd
from overmesh.errors import NotYetError, TokenError, UnreachableError
from overmesh.model import Mode
from overmesh.proto import agent_pb2, mesh_pb2
from tests.unit.cli.conftest import Fake, Meshctl
from tests.unit.cli.test_status import status

LINE = ["join", "192.0.2.1", "--token", "om2.x"]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done instead of touching this machine."""
    did: list[str] = []

    async def join(config: Any, host: str, token: str, name: str, step: Any, *, wait: bool) -> Joined:
        step("reach", f"{host} answers")
        step("token", "accepted")
        addresses = (ip_address("10.77.0.1"), ip_address("fd00::1"))
        return Joined("id", name or "web1", "mesh", Mode.SEALED, addresses, already_member=False)

    monkeypatch.setattr("overmesh.agent.join.join", join)
    # The made-up agent answers once join has started it.
    monkeypatch.setattr("overmesh.cli.joining.answers", lambda _: False)
    monkeypatch.setattr(systemd, "present", lambda: False)
    monkeypatch.setattr(systemd, "start", lambda: did.append("start"))
    monkeypatch.setattr(systemd, "stop", lambda: did.append("stop"))
    return did


@pytest.fixture
def with_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "present", lambda: True)


def answer(name: str = "web2") -> agent_pb2.PingReply:
    return agent_pb2.PingReply(sequence=1, answered=True, rtt_ns=250_000, peer=name)


def test_without_systemd_it_says_how_to_start_the_agent(meshctl: Meshctl, made_up: list[str]) -> None:
    ran = meshctl(*LINE, "--port", "7000", "--endpoint", "192.0.2.2", "--endpoint", "fd00::2")
    assert ran.code == 0
    assert ran.out == (
        "✓ reach       192.0.2.1 answers\n"
        "✓ token       accepted\n"
        "\n"
        "node       web1 in network mesh\n"
        "addresses  10.77.0.1, fd00::1\n"
        "packets    sealed: encrypted (WireGuard)\n"
        "agent      not started\n"
        "next       start the agent: meshctl agent run --port 7000 --endpoint 192.0.2.2 --endpoint fd00::2\n"
    )
    assert made_up == []


@pytest.mark.usefixtures("with_systemd")
def test_with_systemd_it_waits_for_the_first_peer(meshctl: Meshctl, agent: Fake, made_up: list[str]) -> None:
    agent.answers = {"Status": status(), "Ping": [answer()]}
    ran = meshctl(*LINE, "--name", "web9")
    assert ran.code == 0
    assert ran.out == (
        "✓ reach       192.0.2.1 answers\n"
        "✓ token       accepted\n"
        "✓ service     overmesh-agent.service runs, now and after every boot\n"
        "✓ first map   revision 9, 2 peers\n"
        "✓ first peer  web2 answers in 0.250 ms\n"
        "\n"
        "node       web9 in network mesh\n"
        "addresses  10.77.0.1, fd00::1\n"
        "packets    sealed: encrypted (WireGuard, AES-256-GCM and ChaCha20-Poly1305)\n"
        "interface  om0, MTU 1420: eth0 has 1500, less 80 for the tunnel\n"
        "fastpath   tun: the only one\n"
        "peers      2 of 2 answer\n"
        "next       meshctl ping web2\n"
    )
    assert made_up == ["start"]


def test_waiting_for_an_operator(monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl) -> None:
    async def join(config: Any, host: str, token: str, name: str, step: Any, *, wait: bool) -> Joined:
        step("waiting", "web1 (id) waits for approval; on a controller: meshctl node approve web1")
        step("approval", "given")
        return Joined("id", "web1", "mesh", Mode.SEALED, (), already_member=False)

    monkeypatch.setattr("overmesh.agent.join.join", join)
    assert meshctl(*LINE).out.startswith(
        "… waiting     web1 (id) waits for approval; on a controller: meshctl node approve web1\n"
        "✓ approval    given\n"
    )
    assert "approve web1.\n" in meshctl(*LINE, "--json").err


@pytest.mark.usefixtures("with_systemd")
def test_the_first_host_has_nobody_to_wait_for(meshctl: Meshctl, agent: Fake) -> None:
    agent.answers["Status"] = status(peers=[])
    said = meshctl(*LINE).out
    assert "✓ first map   revision 9, 0 peers\n" in said
    assert "peers      none yet\nnext       let the next host in: meshctl token create\n" in said


@pytest.mark.usefixtures("with_systemd")
def test_nobody_waits_for_a_stock_wireguard_peer(meshctl: Meshctl, agent: Fake) -> None:
    phone = agent_pb2.Peer(name="phone", addresses=["10.77.0.9"], kind=mesh_pb2.KIND_WIREGUARD)
    agent.answers["Status"] = status(peers=[phone])
    assert "peers      none yet\n" in meshctl(*LINE).out


@pytest.mark.usefixtures("with_systemd")
def test_json(meshctl: Meshctl, agent: Fake) -> None:
    agent.answers = {"Status": status(), "Ping": [answer()]}
    shown = json.loads(meshctl(*LINE, "--json").out)
    assert [step["step"] for step in shown.pop("steps")] == [
        "reach", "token", "service", "first map", "first peer",
    ]  # fmt: skip
    assert shown.pop("status")["name"] == "web1"
    assert shown == {
        "name": "web1",
        "node_id": "id",
        "network": "mesh",
        "mode": "sealed",
        "addresses": ["10.77.0.1", "fd00::1"],
        "already_member": False,
        "peers_answering": 2,
        "next": "meshctl ping web2",
    }


@pytest.mark.usefixtures("with_systemd")
@pytest.mark.parametrize(
    ("answers", "missing"),
    [
        ({"Status": NotYetError("the agent is still starting")}, "the agent does not answer"),
        ({"Status": status(revision=0)}, "no map has come"),
        ({"Status": status(fastpath=agent_pb2.Fastpath())}, "the fastpath does not run"),
        ({"Status": status(), "Ping": [agent_pb2.PingReply()]}, "no peer answers"),
    ],
)
def test_what_does_not_come_is_exit_code_3(
    answers: dict[str, Any], missing: str, meshctl: Meshctl, agent: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overmesh.cli.options.seconds", lambda _: 0.3)
    agent.answers = answers
    ran = meshctl(*LINE)
    assert ran.code == 3
    assert ran.err == (
        f"meshctl: joined, but within 0.3 s {missing}. "
        "See meshctl status; UDP port 51820 has to be open between the hosts.\n"
    )


@pytest.mark.parametrize("how", [[], ["--foreground"]])
def test_with_an_agent_that_runs_already(
    how: list[str], meshctl: Meshctl, agent: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overmesh.cli.joining.answers", lambda _: True)
    agent.answers = {"Status": status(), "Ping": [answer()]}
    ran = meshctl(*LINE, *how)
    assert ran.code == 0
    assert ran.out.endswith("peers      2 of 2 answer\nnext       meshctl ping web2\n")


@pytest.mark.usefixtures("with_systemd")
def test_no_wait(meshctl: Meshctl, made_up: list[str]) -> None:
    ran = meshctl(*LINE, "--no-wait")
    assert ran.code == 0
    assert ran.out.endswith("agent      started\nnext       meshctl status\n")
    assert made_up == ["start"]


@pytest.mark.usefixtures("with_systemd")
def test_settings_that_the_service_would_not_have(meshctl: Meshctl, made_up: list[str]) -> None:
    ran = meshctl(*LINE, "--port", "7000")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "meshctl: the service that join starts would not have --port 7000. "
        "Write it to /etc/overmesh/agent.toml first, or say --foreground.\n"
    )
    assert made_up == []


def test_refused(monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl) -> None:
    async def join(*_: Any, **__: Any) -> Joined:
        raise TokenError("the token has expired", "make another: meshctl token create")

    monkeypatch.setattr("overmesh.agent.join.join", join)
    ran = meshctl(*LINE)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "meshctl: the token has expired. Make another: meshctl token create.\n"


@pytest.mark.usefixtures("with_systemd")
def test_foreground_is_the_agent(
    monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl, agent: Fake, made_up: list[str]
) -> None:
    async def run(config: Any) -> None:
        made_up.append(f"agent on {config.interface}")
        await asyncio.sleep(1)

    monkeypatch.setattr("overmesh.agent.daemon.run", run)
    agent.answers["Status"] = status(peers=[])
    ran = meshctl(*LINE, "--foreground", "--interface", "om1")
    assert ran.code == 0
    assert made_up == ["agent on om1"]
    assert ran.out.splitlines()[-1] == "next       let the next host in: meshctl token create"


def test_foreground_agent_that_fails(monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl) -> None:
    async def run(_: Any) -> None:
        raise UnreachableError("gone")

    monkeypatch.setattr("overmesh.agent.daemon.run", run)
    ran = meshctl(*LINE, "--foreground")
    assert (ran.code, ran.err) == (1, "meshctl: gone.\n")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overmesh.cli.joining.answers", lambda _: True)


@pytest.mark.usefixtures("running")
def test_leave(meshctl: Meshctl, agent: Fake) -> None:
    agent.answers["Leave"] = agent_pb2.LeaveReply(told_controller=True)
    assert meshctl("leave").out == "Left the mesh: name and addresses are free again.\n"
    assert json.loads(meshctl("leave", "--json").out) == {
        "left": True,
        "told_controller": True,
        "copy_of": None,
    }
    assert agent.requests == [agent_pb2.LeaveRequest(force=False)] * 2


@pytest.mark.usefixtures("running")
def test_leave_on_a_copy(meshctl: Meshctl, agent: Fake) -> None:
    agent.answers["Leave"] = agent_pb2.LeaveReply(copy_of="web1")
    ran = meshctl("leave")
    assert (ran.code, ran.out.splitlines()[0]) == (
        0,
        "Left: this host was only a copy of web1, which stays a member.",
    )
    assert json.loads(meshctl("leave", "--json").out)["copy_of"] == "web1"


@pytest.mark.usefixtures("with_systemd", "running")
def test_leave_by_force(meshctl: Meshctl, agent: Fake, made_up: list[str]) -> None:
    agent.answers["Leave"] = agent_pb2.LeaveReply(told_controller=False)
    ran = meshctl("leave", "--force")
    assert agent.requests == [agent_pb2.LeaveRequest(force=True)]
    assert ran.out.splitlines()[0] == "Left, but no controller was told: it still counts this node."
    assert made_up == ["stop"]


def test_the_unit_runs_the_meshctl_that_installs_it() -> None:
    unit = systemd.unit(Path("/opt/overmesh/bin/meshctl"))
    assert re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE) == ["/opt/overmesh/bin/meshctl agent run"]
    assert "KillMode=process" in unit
