"""`meshctl root`: the mesh root, and how another takes its place."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Any

    from rich.table import Table

    from overmesh.proto import admin_pb2

app = typer.Typer(help="Show and rotate the mesh root, whose key signs everything.")

_SHOWN = 16  # hexadecimal digits of a fingerprint: as many as elsewhere

Force = Annotated[
    bool, typer.Option("--force", metavar="", help="Do it though some are not ready; they are listed.")
]


@app.command(epilog=options.examples("meshctl root status", "meshctl root status --json | jq .members"))
def status(
    *, config: options.Config = None, runtime_dir: options.RuntimeDir = None, as_json: options.Json = False
) -> None:
    """Show which root signs, and during a rotation who is not ready for the next step."""
    from overmesh.proto import admin_pb2

    request = admin_pb2.ShowRootsRequest()
    _show(_ask(config, runtime_dir, lambda admin: admin.ShowRoots(request)), as_json=as_json)


@app.command(epilog=options.examples("meshctl root stage"))
def stage(
    *, config: options.Config = None, runtime_dir: options.RuntimeDir = None, as_json: options.Json = False
) -> None:
    """Make the next root, and have all agents trust it beside the present one. Nothing else changes yet.

    Then copy root.next.key and root.next.pem from this controller's state_dir to that of every other.
    """
    from overmesh.proto import admin_pb2

    request = admin_pb2.StageRootRequest()
    _show(_change(config, runtime_dir, lambda admin: admin.StageRoot(request)), as_json=as_json)


@app.command(epilog=options.examples("meshctl root activate", "meshctl root activate --force"))
def activate(
    *,
    force: Force = False,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Have the next root sign: all records again, and certificates as agents renew theirs.

    Refused while a controller lacks its key, or a connected agent has not heard of it. Tokens that were
    made before let nobody in any more: they are listed.
    """
    from overmesh.proto import admin_pb2

    request = admin_pb2.ActivateRootRequest(force=force)
    _show(_change(config, runtime_dir, lambda admin: admin.ActivateRoot(request)), as_json=as_json)


@app.command(epilog=options.examples("meshctl root retire", "meshctl root retire --force"))
def retire(
    *,
    force: Force = False,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Have nobody trust the old root any more, and delete its key from the controllers.

    Refused while a member has not come over. With --force those find the way by themselves when they come
    back, over what the old root signed when the new one was staged.
    """
    from overmesh.proto import admin_pb2

    request = admin_pb2.RetireRootRequest(force=force)
    _show(_change(config, runtime_dir, lambda admin: admin.RetireRoot(request)), as_json=as_json)


def _change(
    config: "Path | None", runtime_dir: "Path | None", call: "Callable[[Any], Any]"
) -> "admin_pb2.RootsState":
    return _ask(config, runtime_dir, call, shown_by="meshctl root status")


def _ask(
    config: "Path | None", runtime_dir: "Path | None", call: "Callable[[Any], Any]", *, shown_by: str = ""
) -> "admin_pb2.RootsState":
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client

    state: admin_pb2.RootsState = client.ask_controller(settings, call, shown_by=shown_by)
    return state


def _show(state: "admin_pb2.RootsState", *, as_json: bool) -> None:
    if as_json:
        output.show_json(_as_json(state))
    else:
        output.show(*_page(state))


def _page(state: "admin_pb2.RootsState") -> "Iterator[Table | output.Cell]":
    yield output.table(("root", "state", "key here", "ends"), map(_row, state.roots))
    if len(state.roots) < 2:
        yield Text("No rotation is under way.", output.DIM)
        return
    yield from _waiting("Controllers without the newest root's key", state.controllers)
    yield from _waiting(
        "Agents that have not heard of the newest root",
        (f"{agent.name} ({agent.reason})" for agent in state.agents),
    )
    yield from _waiting("Records that are still to be signed", [str(state.records)] if state.records else ())
    if state.roots[-1].state == "signs":
        members = (f"{one.name}{'' if one.online else ' (offline)'}" for one in state.members)
        yield from _waiting("Members that have not come over", members)
    yield from _waiting("Tokens that are void once the newest root signs", state.tokens)
    yield Text(_next_step(state), output.DIM)


def _row(root: "admin_pb2.MeshRoot") -> "tuple[output.Cell, ...]":
    left = root.not_after - time.time()
    return (
        root.fingerprint[:_SHOWN],
        output.state(good=root.state == "signs", yes=root.state, no=root.state),
        "yes" if root.key_here else "no",
        f"in {output.span(left)}" if left > 0 else output.ago(-left),
    )


def _waiting(what: str, names: "Iterable[str]") -> "Iterator[output.Cell]":
    if listed := ", ".join(names):
        yield Text(f"{what}: {listed}", "yellow")


def _next_step(state: "admin_pb2.RootsState") -> str:
    if state.roots[-1].state == "next":
        if state.controllers:
            return "Next: copy root.next.key and root.next.pem to the other controllers."
        return "Next: meshctl root activate" + (", once all agents have heard of it" if state.agents else "")
    ready = not state.members and not state.records
    return "Next: meshctl root retire" + ("" if ready else ", once all have come over")


def _as_json(state: "admin_pb2.RootsState") -> dict[str, object]:
    return {
        "roots": [
            {
                "fingerprint": root.fingerprint,
                "state": root.state,
                "not_after": root.not_after,
                "key_here": root.key_here,
            }
            for root in state.roots
        ],
        "controllers": list(state.controllers),
        "agents": [{"name": agent.name, "reason": agent.reason} for agent in state.agents],
        "members": [
            {"network": one.network, "name": one.name, "id": one.id, "online": one.online}
            for one in state.members
        ],
        "records": state.records,
        "tokens": list(state.tokens),
    }
