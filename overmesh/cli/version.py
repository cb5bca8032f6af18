"""`meshctl version`."""

import platform

import typer

from overmesh import __version__
from overmesh.cli import options, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(epilog=options.examples("meshctl version", "meshctl version --json"))(version)


def version(*, as_json: options.Json = False) -> None:
    """Print the version of meshctl; `status` shows those of the agent and the fastpath."""
    if as_json:
        output.show_json({"version": __version__, "python": platform.python_version()})
    else:
        output.show(f"meshctl {__version__}")
