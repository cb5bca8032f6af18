"""`meshctl controller`: run a controller, list all that run."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

app = typer.Typer(help="Run the controller: who is in, and who sees whom.")


@app.command(
    epilog=options.examples(
        "meshctl controller run",
        "meshctl controller run --advertise mesh.example.org",
        "meshctl controller run --range 10.90.0.0/16 --range fd12:3456:789a::/64 --log-format json",
        "meshctl controller run --store 'etcd://a:2379,b:2379,c:2379/mesh?ca=ca.pem&cert=our.pem&key=our.key'",
    )
)
def run(
    *,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen there only; default: everywhere.")
    ] = None,
    join_port: Annotated[int | None, options.port("For hosts that join. Default: 7442.")] = None,
    mesh_port: Annotated[int | None, options.port("For agents. Default: 7443.")] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="How hosts reach this controller; again for more names."),
    ] = None,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="CIDR",
            help="Of the default network when it is first made: one IPv4, one IPv6.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Where the truth is kept: sqlite:FILE, or for several controllers "
            "etcd://HOST[,HOST…]/PREFIX, with ?ca=FILE&cert=FILE&key=FILE for TLS. "
            "Default: sqlite:STATE_DIR/store.db.",
        ),
    ] = None,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    metrics: options.Metrics = None,
    trace: options.Trace = None,
    log_format: options.Log = None,
    config: options.Config = None,
) -> None:
    """Run a controller until it is told to stop (SIGTERM or Ctrl-C).

    Settings come from flags, then OVERMESH_* variables, then /etc/overmesh/controller.toml.
    """
    flags = {
        "listen": listen,
        "join_port": join_port,
        "mesh_port": mesh_port,
        "advertise": options.several(advertise),
        "ranges": options.several(range_),
        "store": store,
        "state_dir": state_dir,
        "runtime_dir": runtime_dir,
        "metrics": metrics,
        "trace": trace,
        "log_format": log_format,
    }
    settings = load(ControllerConfig, flags, file=config)
    from overmesh.controller.serving import process

    process.settle_grpc()  # before the daemon brings it
    from overmesh.controller import daemon

    daemon.run(settings)


@app.command("list", epilog=options.examples("meshctl controller list", "meshctl controller list --json"))
def list_(
    *,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """List the controllers that run on this mesh's store; each is asked how it is."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.ListControllersRequest()
    reply = client.ask_controller(settings, lambda admin: admin.ListControllers(request))
    if as_json:
        output.show_json({"controllers": [_as_json(one) for one in reply.controllers]})
        return
    columns = ("id", "agents at", "joining at", "state", "agents", "revision", "version")
    output.show(
        output.table(columns, map(_row, reply.controllers), right=("agents", "revision")),
        *(
            line
            for one in reply.controllers
            for line in output.problems(one.problems, f"controller {one.id}")
        ),
    )


def _as_json(one: "admin_pb2.Controller") -> dict[str, object]:
    return {
        "id": one.id,
        "mesh": list(one.mesh),
        "join": list(one.join),
        "here": one.here,
        "answers": not one.unanswered,
        "reason": one.unanswered or None,
        "agents": one.agents,
        "revision": one.revision,
        "since": one.since or None,
        "version": one.version,
        "problems": output.problems_json(one.problems),
    }


def _row(one: "admin_pb2.Controller") -> tuple[output.Cell, ...]:
    places = (one.id, "\n".join(one.mesh), "\n".join(one.join))
    if one.unanswered:
        return (*places, Text(one.unanswered, output.BAD), "", "", "")
    here = ", here" if one.here else ""
    state = Text(
        f"for {output.span(time.time() - one.since)}{here}", output.BAD if one.problems else output.GOOD
    )
    return (*places, state, str(one.agents), str(one.revision), one.version)
