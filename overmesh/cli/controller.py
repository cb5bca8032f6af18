"""`meshctl controller`: run a controller."""

from typing import Annotated

import typer

from overmesh.cli import options
from overmesh.config import ControllerConfig, load

app = typer.Typer(help="Run the controller: who is in, and who sees whom.")


@app.command(
    epilog=options.examples(
        "meshctl controller run",
        "meshctl controller run --advertise mesh.example.org",
        "meshctl controller run --range 10.90.0.0/16 --range fd12:3456:789a::/64 --log-format json",
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
        typer.Option(metavar="TARGET", help="Where the truth is kept. Default: sqlite:STATE_DIR/store.db."),
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
    from overmesh.controller import daemon

    daemon.run(settings)
