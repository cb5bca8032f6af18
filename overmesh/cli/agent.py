"""`meshctl agent`: run this host's agent."""

import typer

from overmesh.cli import options
from overmesh.config import AgentConfig, load

app = typer.Typer(help="Run the agent: make this host match its map.")


@app.command(
    epilog=options.examples(
        "meshctl agent run",
        "meshctl agent run --endpoint 203.0.113.7:6081",
        "meshctl agent run --log-format json",
    )
)
def run(
    *,
    interface: options.Interface = None,
    port: options.Port = None,
    mtu: options.Mtu = None,
    endpoint: options.Endpoints = None,
    fastpath: options.Fastpath = None,
    host_id: options.HostId = None,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    log_format: options.Log = None,
    config: options.Config = None,
) -> None:
    """Run the agent of a host that has joined, until it is told to stop (SIGTERM or Ctrl-C).

    Traffic flows on while it is away. Settings come from flags, then OVERMESH_* variables, then
    /etc/overmesh/agent.toml.
    """
    flags = {
        "interface": interface,
        "port": port,
        "mtu": mtu,
        "endpoints": options.several(endpoint),
        "fastpath": fastpath,
        "host_id": host_id,
        "state_dir": state_dir,
        "runtime_dir": runtime_dir,
        "log_format": log_format,
    }
    settings = load(AgentConfig, flags, file=config)
    import asyncio

    from overmesh.agent import daemon

    asyncio.run(daemon.run(settings))
