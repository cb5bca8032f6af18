"""`meshctl ping`."""

from typing import TYPE_CHECKING, Annotated

import typer

from overmesh.cli import options, output
from overmesh.config import AgentConfig, load

if TYPE_CHECKING:
    from overmesh.proto import agent_pb2


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=options.examples(
            "meshctl ping web1", "meshctl ping 10.77.0.3 -c 100 -i 0.01", "meshctl ping web1 --json"
        )
    )(ping)


def ping(
    peer: Annotated[str, typer.Argument(metavar="PEER", help="A name, a node id or an overlay address.")],
    *,
    count: Annotated[
        int, typer.Option("--count", "-c", min=0, metavar="N", help="How many; 0: until Ctrl-C.")
    ] = 4,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.001, metavar="SECONDS", help="Time between two.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="How long an answer may take.")
    ] = 2.0,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Measure round trips to a peer through the overlay, and name the path they take.

    Exit code 0 when any was answered, 1 when none was; then the last line says why that may be. With --json:
    one object per line.
    """
    settings = load(AgentConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import agent_pb2

    request = agent_pb2.PingRequest(
        peer=peer, count=count, interval_ms=round(interval * 1000), timeout_ms=round(timeout * 1000)
    )
    replies = client.run(_probe(settings, request, as_json=as_json))
    answered = any(reply.answered for reply in replies)
    cause, fix = ("", "") if answered or not replies else _why(settings, peer, replies[0].peer)
    if as_json:
        summary = _summary(replies) | {"cause": cause or None, "fix": fix or None}
        output.show_json({"summary": summary}, line=True)
    else:
        advice = [f"{cause}. {fix[0].upper()}{fix[1:]}."] if cause else []
        output.show(f"\n{_summary_line(peer, replies)}", *advice)
    if not answered:
        raise typer.Exit(1)


async def _probe(
    settings: AgentConfig, request: "agent_pb2.PingRequest", *, as_json: bool
) -> "list[agent_pb2.PingReply]":
    """Return all replies, shown as they come; Ctrl-C ends the run, not the command."""
    from asyncio import CancelledError

    from overmesh.cli import client

    replies: list[agent_pb2.PingReply] = []
    async with client.agent(settings) as agent:
        try:
            async for reply in agent.Ping(request):
                replies.append(reply)
                if as_json:
                    output.show_json(_as_json(reply), line=True)
                else:
                    output.show(_line(reply))
        except CancelledError:
            pass
    return replies


def _why(settings: AgentConfig, asked: str, name: str) -> tuple[str, str]:
    """Return why the peer that was asked by a name, id or address did not answer, and what to do."""
    from overmesh.cli import client
    from overmesh.cli.unanswered import why
    from overmesh.proto import agent_pb2

    status = client.ask_agent(settings, lambda agent: agent.Status(agent_pb2.StatusRequest()))
    for peer in status.peers:
        if peer.name == name:
            return why(peer, through_host=asked not in (peer.name, peer.node_id))
    return f"{name} is not in the map any more", "see meshctl status"


def _line(reply: "agent_pb2.PingReply") -> str:
    who = f"{reply.peer} ({reply.address}) seq={reply.sequence}"
    if not reply.answered:
        return f"no answer from {who}"
    return f"{who} time={output.milliseconds(reply.rtt_ns)} via {reply.path}"


def _as_json(reply: "agent_pb2.PingReply") -> dict[str, object]:
    return {
        "sequence": reply.sequence,
        "answered": reply.answered,
        "rtt_ns": reply.rtt_ns if reply.answered else None,
        "peer": reply.peer,
        "address": reply.address,
        "path": reply.path,
    }


def _summary(replies: "list[agent_pb2.PingReply]") -> dict[str, object]:
    times = [reply.rtt_ns for reply in replies if reply.answered]
    return {
        "sent": len(replies),
        "answered": len(times),
        "min_ns": min(times, default=None),
        "avg_ns": sum(times) // len(times) if times else None,
        "max_ns": max(times, default=None),
    }


def _summary_line(peer: str, replies: "list[agent_pb2.PingReply]") -> str:
    times = [reply.rtt_ns for reply in replies if reply.answered]
    sent = len(replies)
    line = f"{peer}: {sent} sent, {len(times)} answered, {100 * (sent - len(times)) / max(sent, 1):.0f}% lost"
    if times:
        spread = (min(times), sum(times) / len(times), max(times))
        line += "; min/avg/max " + " / ".join(map(output.milliseconds, spread))
    return line
