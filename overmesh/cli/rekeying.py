"""`meshctl node rotate-keys`: this host changes its keys. And how `meshctl status` shows keys."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import AgentConfig, load

if TYPE_CHECKING:
    from overmesh.proto import agent_pb2

# Announcing goes through the fastpath, a controller and its store.
_TIMEOUT = 60.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "rotate-keys",
        epilog=options.examples("meshctl node rotate-keys", "meshctl node rotate-keys --grace 10m --json"),
    )(rotate_keys)


def rotate_keys(
    *,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old keys stay good besides; at least 10s.")
    ] = "1h",
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Change this host's X25519 and TLS keys. No packet is lost, and its name, id and addresses stay.

    Others know of the new keys when this returns; the old ones are good until the grace is over. Give it so
    much time that every agent which is away for a moment hears of it, and you get to every stock WireGuard
    peer: its file names this host's key, make it again with `meshctl peer config`.
    """
    settings = load(AgentConfig, {"runtime_dir": runtime_dir}, file=config)
    request_seconds = options.seconds(grace)
    from overmesh.cli import client
    from overmesh.proto import agent_pb2

    request = agent_pb2.RotateKeysRequest(grace_seconds=request_seconds)
    reply = client.ask_agent(settings, lambda agent: agent.RotateKeys(request), _TIMEOUT)
    if as_json:
        output.show_json({"until": reply.until, "stock_peers": list(reply.stock_peers)})
    else:
        output.show(*_words(reply))


def _words(reply: "agent_pb2.RotateKeysReply") -> list[output.Cell]:
    left = output.span(reply.until - time.time())
    words: list[output.Cell] = [
        f"The new keys are in use. The old ones stay good for {left}: meshctl status."
    ]
    if reply.stock_peers:
        words.append(
            Text(
                f"! WireGuard peers know the old key alone: {', '.join(reply.stock_peers)}. "
                "Give each its new file before that: meshctl peer config NAME",
                "yellow",
            )
        )
    return words


def shown(reply: "agent_pb2.StatusReply") -> output.Cell:
    """Return how old a host's keys are, and how far a change of them is."""
    age = output.span(time.time() - reply.keys_since) + " old" if reply.keys_since else "age not known"
    if not reply.HasField("key_change"):
        return age
    change = reply.key_change
    left = change.until - time.time()
    good = f", the old ones are good for {output.span(left)}" if left > 0 else ""
    why = f": {change.error}" if change.error else ""
    return Text(f"{age}; changing ({change.stage}{good}){why}", "yellow" if why else "")


def as_dict(reply: "agent_pb2.StatusReply") -> dict[str, object]:
    """Return the same for machines."""
    change = reply.key_change if reply.HasField("key_change") else None
    return {
        "since": reply.keys_since or None,
        "change": change
        and {"stage": change.stage, "until": change.until or None, "error": change.error or None},
    }
