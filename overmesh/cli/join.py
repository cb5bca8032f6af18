"""`meshctl join` and `meshctl leave`: into the mesh with one line, and out of it.

What they do once the command line is understood is in joining.py.
"""

import shlex
from typing import Annotated

import typer

from overmesh.cli import options, output, systemd
from overmesh.config import AgentConfig, load
from overmesh.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(
        epilog=options.examples(
            "meshctl join mesh.example.org --token om2.3f9a0c27d1…",
            "meshctl join 192.0.2.1 --token om2.3f9a0c27d1… --name web1",
            "meshctl join 192.0.2.1 --token om2.3f9a0c27d1… --foreground     # in a container",
        )
    )(join)
    app.command(epilog=options.examples("meshctl leave", "meshctl leave --force"))(leave)


@options.with_agent_settings
def join(
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="The controller: a name or address, with :PORT if not 7442.")
    ],
    *,
    token: Annotated[
        str, typer.Option(metavar="TOKEN", help="What `meshctl token create` printed.", show_default=False)
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="This node's name. Default: the host's.", show_default=False)
    ] = "",
    foreground: Annotated[
        bool, typer.Option("--foreground", metavar="", help="Become the agent: for containers.")
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", metavar="", help="Do not wait for a peer or an operator."),
    ] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for that.")] = "30s",
    given: options.Given,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Join a network: show each step, start the agent, wait until a peer answers.

    With a token that asks for approval it first waits for an operator, who lets this host in with
    `meshctl node approve`. Ctrl-C and the same line again go on waiting.

    The agent is started through systemd where there is one. Joining twice changes nothing and shows how
    things are. Exit code 3: joined, but no peer answers yet.
    """
    settings = load(AgentConfig, given, file=config)
    flags = options.as_flags({**given, "config": config})
    if flags and not foreground and systemd.present():
        raise UsageError(
            f"the service that join starts would not have {shlex.join(flags)}",
            f"write it to {AgentConfig.file} first, or say --foreground",
        )
    from overmesh.cli import client, joining

    wanted = joining.Wanted(host, token, name, foreground, not no_wait, options.seconds(timeout), flags)
    client.run(joining.join(settings, wanted, as_json=as_json))


def leave(
    *,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Leave though no controller can be told.")
    ] = False,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Leave the mesh: tell the controller, take down what the agent set up, and forget keys and state.

    Works also when the agent does not run. On a host that holds only a copy of a member's keys, as a cloned
    machine does, it does the same but for telling: the member stays.
    """
    settings = load(AgentConfig, {"state_dir": state_dir, "runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client, joining

    left = client.run(joining.leave(settings, force=force))
    if as_json:
        output.show_json({"left": True, "told_controller": left.told, "copy_of": left.copy_of or None})
    elif left.told:
        output.show("Left the mesh: name and addresses are free again.")
    elif left.copy_of:
        output.show(
            f"Left: this host was only a copy of {left.copy_of}, which stays a member.",
            f"Should it go, too? On the controller's host: meshctl node remove {left.copy_of}",
        )
    else:
        output.show(
            "Left, but no controller was told: it still counts this node.",
            "On the controller's host: meshctl node remove NAME",
        )
