"""What holds for every verb: help with examples, exit codes, errors in one line, a quick start."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from overmesh.cli import main
from overmesh.errors import OvermeshError
from tests.unit.cli import manual
from tests.unit.cli.conftest import Fake, Meshctl

VERBS = {" ".join(path[1:]): command for path, command in manual.verbs(typer.main.get_command(main.app))}


def test_the_verbs_are_those_of_the_contract() -> None:
    assert sorted(VERBS) == [
        "agent run", "audit", "controller list", "controller run", "join", "leave",
        "network create", "network list", "node approve", "node deny", "node list", "node pending",
        "node remove", "node revoke", "node rotate-keys", "node show",
        "peer add", "peer config", "peer remove", "ping",
        "root activate", "root retire", "root stage", "root status", "status",
        "store export", "store import", "store migrate", "token create", "token list", "token revoke",
        "version", "wait",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_names_every_option_with_words(verb: str, meshctl: Meshctl) -> None:
    ran = meshctl(*verb.split(), "--help")
    assert ran.code == 0
    assert f"$ meshctl {verb}" in ran.out
    assert all(parameter.help and parameter.metavar is not None for parameter in VERBS[verb].params)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"agent run", "controller run"}))
def test_every_verb_that_prints_takes_json(verb: str) -> None:
    assert any("--json" in parameter.opts for parameter in VERBS[verb].params)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nonsense"], "meshctl: No such command 'nonsense'. See meshctl --help.\n"),
        (["status", "--nonsense"], "meshctl: No such option: --nonsense. See meshctl status --help.\n"),
        (["node", "show"], "meshctl: Missing argument 'NODE'. See meshctl node show --help.\n"),
        (
            ["token", "create", "--expires", "soon"],
            "meshctl: 'soon' is not a duration. Write it like 90s, 30m, 1h or 7d.\n",
        ),
        (["wait"], "meshctl: say what to wait for. Either --revision R or --converged.\n"),
        (
            ["wait", "--converged", "--revision", "3"],
            "meshctl: say what to wait for. Either --revision R or --converged.\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], said: str, meshctl: Meshctl) -> None:
    ran = meshctl(*args)
    assert (ran.code, ran.out, ran.err) == (2, "", said)


def test_a_noun_without_a_verb_shows_help(meshctl: Meshctl) -> None:
    ran = meshctl("token")
    assert ran.code == 2
    assert "create" in ran.out
    assert ran.err == ""


CONTROLLER_VERBS = [
    "token create",
    "token list",
    "token revoke x",
    "node list",
    "node remove x",
    "network list",
]
AGENT_VERBS = ["status", "ping x", "wait --converged"]


@pytest.mark.parametrize("verb", CONTROLLER_VERBS)
def test_without_a_controller(verb: str, meshctl: Meshctl) -> None:
    ran = meshctl(*verb.split())
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("meshctl: no controller runs on this host. Run this on the controller's host")


@pytest.mark.parametrize("verb", AGENT_VERBS)
def test_without_an_agent(verb: str, meshctl: Meshctl) -> None:
    ran = meshctl(*verb.split())
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("meshctl: the agent does not run on this host. Start it: systemctl start")


def test_a_socket_left_behind_counts_as_none(runtime_dir: Path, meshctl: Meshctl) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime_dir / "controller.sock"))
    assert "no controller runs on this host" in meshctl("token", "list").err


def test_a_socket_that_is_no_socket(runtime_dir: Path, meshctl: Meshctl) -> None:
    (runtime_dir / "agent.sock").mkdir()
    ran = meshctl("status")
    assert (ran.code, ran.out) == (1, "")
    assert "agent.sock can't be used" in ran.err or "does not run on this host" in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become someone else")
def test_a_socket_for_root_only(runtime_dir: Path, controller: Fake, meshctl: Meshctl) -> None:
    runtime_dir.chmod(0o700)
    os.seteuid(65534)
    try:
        ran = meshctl("token", "list")
    finally:
        os.seteuid(0)
    assert ran.code == 1
    assert "controller.sock is only for root. Use sudo, or run this as root." in ran.err


def test_an_unknown_key_in_a_config_file(tmp_path: Path, meshctl: Meshctl) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("intreface = 'om1'\n")
    ran = meshctl("status", "--config", str(file), "--json")
    assert ran.code == 2
    assert json.loads(ran.err)["error"]["fix"] == "did you mean 'interface'?"


def test_what_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, controller: Fake, meshctl: Meshctl
) -> None:
    controller.answers.clear()  # the fake raises KeyError, its caller gets UNKNOWN
    ran = meshctl("token", "list")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1

    monkeypatch.setattr("overmesh.cli.client.ask_controller", lambda *_: 1 / 0)
    ran = meshctl("token", "list")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "meshctl: unexpected ZeroDivisionError: division by zero. "
        "This is a bug: report it with what OVERMESH_DEBUG=1 shows.\n"
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl) -> None:
    monkeypatch.setenv("OVERMESH_DEBUG", "1")
    monkeypatch.setattr("overmesh.cli.client.ask_controller", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        meshctl("token", "list")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("overmesh.cli.client.ask_controller", interrupted)
    assert meshctl("token", "list").code == 130


def test_an_error_of_several_tasks_is_the_first_of_ours(
    monkeypatch: pytest.MonkeyPatch, meshctl: Meshctl
) -> None:
    def failed(*_: object) -> None:
        inner = ExceptionGroup("tasks", [OvermeshError("the port is taken", "stop the other one")])
        raise ExceptionGroup("tasks", [inner])

    monkeypatch.setattr("overmesh.cli.client.ask_controller", failed)
    assert meshctl("token", "list").err == "meshctl: the port is taken. Stop the other one.\n"


@pytest.mark.parametrize("args", [["--help"], ["version"], ["join", "--help"]])
def test_a_quick_verb_loads_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys; from overmesh.cli import main; main.run(sys.argv[1:]);"
        "heavy = {'grpc', 'google.protobuf', 'cryptography', 'pyroute2', 'asyncio'};"
        "print(*(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == ""


def test_completion() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from overmesh.cli.main import main; main()"],
        env={
            **os.environ,
            "_MESHCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": "meshctl node ",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert {"list", "show", "remove", "approve"} <= set(ran.stdout.split())


def test_the_manual_is_current() -> None:
    assert manual.PAGE.read_text() == manual.page(), "run python -m tests.unit.cli.manual"
