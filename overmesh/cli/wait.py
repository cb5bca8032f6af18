"""`meshctl wait`: convergence is proven, not hoped for."""

from typing import TYPE_CHECKING, Annotated

import typer

from overmesh.cli import options, output
from overmesh.config import AgentConfig, ControllerConfig, load
from overmesh.errors import NotYetError, UsageError

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

# Beyond the time asked for, so that it is the other side that says who is behind.
_GRACE = 5.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=options.examples(
            "meshctl wait --converged",
            "meshctl wait --revision 42 --timeout 10s",
            "meshctl wait --converged --json",
        )
    )(wait)


def wait(
    *,
    revision: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Until this revision of the map is applied.")
    ] = None,
    converged: Annotated[
        bool, typer.Option("--converged", metavar="", help="Until the map as it is now is applied.")
    ] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Give up after this long.")] = "30s",
    network: options.Network = options.DEFAULT,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Wait until every live agent has applied the map and has the right digest of it.

    An agent counts as live while it is connected. On a host without a controller it waits for this
    host's agent alone; which map is the newest a controller says, once it has asked its store. Exit code 3
    when time is up, with who is behind and why, or why the controllers can't know.
    """
    if converged == (revision is not None):
        raise UsageError("say what to wait for", "either --revision R or --converged")
    limit = options.seconds(timeout)
    controller = load(ControllerConfig, {"runtime_dir": runtime_dir})
    if controller.socket.exists():
        _for_all(controller, network, revision or 0, limit, as_json=as_json)
    else:
        agent = load(AgentConfig, {"runtime_dir": runtime_dir})
        _for_this_host(agent, revision or 0, limit, as_json=as_json)


def _for_all(config: ControllerConfig, network: str, revision: int, limit: int, *, as_json: bool) -> None:
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.WaitRequest(network=network, revision=revision, timeout_ms=limit * 1000)
    reply: admin_pb2.WaitReply = client.run(
        client.ask(client.controller(config), lambda admin: admin.Wait(request), limit + _GRACE)
    )
    if as_json:
        output.show_json(_as_json(reply))
    if not reply.converged:
        behind = "; ".join(map(_who_and_why, reply.behind))
        raise NotYetError(
            f"revision {reply.revision} is not applied everywhere: {behind}", "see meshctl node list"
        )
    if not as_json:
        output.show(f"{output.counted(reply.agents, 'agent')} in step at revision {reply.revision}.")


def _for_this_host(config: AgentConfig, revision: int, limit: int, *, as_json: bool) -> None:
    from overmesh.cli import client
    from overmesh.proto import agent_pb2

    request = agent_pb2.WaitRequest(revision=revision, timeout_ms=limit * 1000)
    reply: agent_pb2.WaitReply = client.ask_agent(config, lambda agent: agent.Wait(request), limit + _GRACE)
    if as_json:
        output.show_json({"scope": "host", "converged": reply.reached, "revision": reply.revision})
    if not reply.reached:
        raise NotYetError(f"this host is at revision {reply.revision}: {reply.reason}", "see meshctl status")
    if not as_json:
        output.show(f"This host is in step at revision {reply.revision}.")


def _who_and_why(one: "admin_pb2.Behind") -> str:
    at = f" is at {one.acked_revision}" if one.acked_revision else ""
    return f"{one.name}{at}: {one.reason}"


def _as_json(reply: "admin_pb2.WaitReply") -> dict[str, object]:
    behind = [
        {"name": one.name, "acked_revision": one.acked_revision, "reason": one.reason} for one in reply.behind
    ]
    return {
        "scope": "network",
        "converged": reply.converged,
        "revision": reply.revision,
        "agents": reply.agents,
        "behind": behind,
    }
