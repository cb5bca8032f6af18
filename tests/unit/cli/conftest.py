"""meshctl against real unix sockets with a made-up controller and agent behind them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from overmesh import rpc
from overmesh.cli import approval, audit, main, node, rekeying, revoked, root, token
from overmesh.errors import OvermeshError
from overmesh.model import Problem
from overmesh.proto import admin_pb2_grpc, agent_pb2_grpc

NOW = 1_800_000_000

Answer = Any


@dataclass
class Fake:
    """Answers each method with what `answers` has for it: a message, a list to stream, or an error.

    Or a function of the call's metadata that returns one of these.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def reply(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        context.set_trailing_metadata(rpc.telling(self.problems))
        answer = self.answers[method]
        if callable(answer):
            answer = answer(dict(context.invocation_metadata()))
        if isinstance(answer, OvermeshError):
            context.set_trailing_metadata(
                (("overmesh-error", type(answer).__name__), ("overmesh-fix-bin", answer.fix.encode()))
            )
            context.abort(rpc.status_of(answer), answer.cause)
        return iter(answer) if isinstance(answer, list) else answer


def servicer(base: type, fake: Fake) -> Any:
    """Return an instance of a generated servicer whose every method asks the fake."""

    def method(name: str) -> Callable[..., Any]:
        return lambda _, request, context: fake.reply(name, request, context)

    names = [name for name in vars(base) if not name.startswith("_")]
    return type("Servicer", (base,), {name: method(name) for name in names})()


def serving(socket: Path, add: Callable[[Any, grpc.Server], None], base: type) -> Iterator[Fake]:
    fake = Fake()
    server = grpc.server(ThreadPoolExecutor(2))
    add(servicer(base, fake), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    yield fake
    server.stop(None).wait(5)


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runtime directory, a terminal of 120 columns, and a clock that stands."""
    monkeypatch.setenv("OVERMESH_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    for module in (approval, audit, node, rekeying, revoked, root, token):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: NOW))
    return tmp_path


@pytest.fixture
def controller(runtime_dir: Path) -> Iterator[Fake]:
    yield from serving(
        runtime_dir / "controller.sock",
        admin_pb2_grpc.add_AdminServicer_to_server,
        admin_pb2_grpc.AdminServicer,
    )


@pytest.fixture
def agent(runtime_dir: Path) -> Iterator[Fake]:
    yield from serving(
        runtime_dir / "agent.sock", agent_pb2_grpc.add_AgentServicer_to_server, agent_pb2_grpc.AgentServicer
    )


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Meshctl = Callable[..., Ran]


@pytest.fixture
def meshctl(capsys: pytest.CaptureFixture[str]) -> Meshctl:
    """Run one command in this process."""

    def run(*args: str) -> Ran:
        code = main.run(args)
        return Ran(code, *capsys.readouterr())

    return run
