"""`meshctl agent`: run this host's agent."""

import typer

from overmesh.cli import options
from overmesh.config import AgentConfig, load

app = typer.Typer(help="Run the agent: make this host match its map.")


@app.command(
    epilog=options.examples(
        "meshctl agent run",
        "meshctl agent run --endpoint 203.0.113.7:51820",
        "meshctl agent run --log-format json",
    )
)
@options.with_agent_settings
def run(*, given: options.Given, config: options.Config = None) -> None:
    """Run the agent of a host that has joined, until it is told to stop (SIGTERM or Ctrl-C).

    Traffic flows on while it is away. Settings come from flags, then OVERMESH_* variables, then
    /etc/overmesh/agent.toml.
    """
    settings = load(AgentConfig, given, file=config)
    import asyncio

    from overmesh.agent import daemon

    asyncio.run(daemon.run(settings))
