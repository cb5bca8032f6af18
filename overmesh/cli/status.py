"""`meshctl status`: this host, as its agent sees it."""

import time
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from overmesh.cli import options, output, rekeying
from overmesh.cli.drops import meaning
from overmesh.config import AgentConfig, load
from overmesh.model import Mode, Suite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from overmesh.proto import agent_pb2

NOT_WORKING = 3

_CIPHERS: dict[int, str] = {Suite.CHACHA: "ChaCha20-Poly1305", Suite.AES: "AES-256-GCM"}
_SESSION_SECONDS = 180  # WireGuard's Reject-After-Time


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=options.examples("meshctl status", "meshctl status --json | jq '.peers[] | {name, endpoint}'")
    )(status)


def status(
    *,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Show this host: addresses, fastpath, MTU, map, controller, peers, drops and problems.

    Exit code 0: a working member (also while no controller answers: traffic flows on). 1: the agent does
    not run. 3: the agent runs, but the host was removed, its fastpath is down, or problems are listed.
    """
    settings = load(AgentConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import agent_pb2

    reply = client.ask_agent(settings, lambda agent: agent.Status(agent_pb2.StatusRequest()))
    if as_json:
        output.show_json(as_dict(reply))
    else:
        output.show(*_page(reply))
    if not _working(reply):
        raise typer.Exit(NOT_WORKING)


def _working(reply: "agent_pb2.StatusReply") -> bool:
    return reply.membership == "member" and reply.fastpath.running and not reply.problems


def _page(reply: "agent_pb2.StatusReply") -> "Iterable[Table | output.Cell]":
    yield output.facts(_facts(reply))
    yield ""
    if reply.peers:
        columns = (
            "peer", "addresses", "endpoint", "mode", "session", "last heard", "mtu",
            "sent", "received", "drops",
        )  # fmt: skip
        yield output.table(columns, map(_peer_row, reply.peers), right=("sent", "received", "drops"))
    else:
        yield "No peers yet."
    if any(reply.drops.values()):
        rows = [(name, str(count), meaning(name)) for name, count in sorted(reply.drops.items()) if count]
        yield ""
        yield output.table(("dropped", "packets", "meaning"), rows, right=("packets",))
    for problem in reply.problems:
        yield Text(f"! {problem.subject}: {problem.reason}", output.BAD)


def _facts(reply: "agent_pb2.StatusReply") -> list[tuple[str, output.Cell]]:
    return [
        ("node", f"{reply.name} ({reply.node_id}) in network {reply.network}"),
        ("state", output.state(good=reply.membership == "member", yes="member", no=reply.membership)),
        ("addresses", ", ".join(reply.addresses)),
        ("packets", packets(reply.mode, reply.peers)),
        ("interface", f"{reply.interface}, MTU {reply.mtu}: {reply.mtu_reason}"),
        ("fastpath", _fastpath(reply.fastpath)),
        ("offloads", _offloads(reply.fastpath.offloads)),
        *_small_buffers(reply.fastpath.socket_buffers),
        ("endpoints", ", ".join(map(output.endpoint, reply.endpoints)) or "none"),
        ("map", f"revision {reply.revision}, confirmed {output.ago(reply.map_age_seconds)}"),
        ("controller", _controller(reply.controller)),
        ("trust", _trust(reply)),
        ("keys", rekeying.shown(reply)),
        ("version", reply.version),
    ]


def _trust(reply: "agent_pb2.StatusReply") -> output.Cell:
    """Say how long this host may take part; both are renewed long before."""
    ends = (("certificate", reply.certificate_until), ("membership", reply.membership_until))
    left = [(what, end - time.time()) for what, end in ends]
    words = [
        f"{what} for {output.span(rest)}" if rest > 0 else f"{what} ended {output.ago(-rest)}"
        for what, rest in left
    ]
    return Text(", ".join(words), "" if all(rest > 0 for _, rest in left) else output.BAD)


def _fastpath(fastpath: "agent_pb2.Fastpath") -> output.Cell:
    if not fastpath.running:
        return Text("down", output.BAD)
    restarts = f", restarted {output.counted(fastpath.restarts, 'time')}" if fastpath.restarts else ""
    up = output.span(fastpath.uptime_seconds)
    lanes = f"; {_lanes(fastpath)}" if fastpath.lanes else ""
    return f"{fastpath.backend}: {fastpath.reason}{lanes}; up {up}, pid {fastpath.pid}{restarts}"


def _lanes(fastpath: "agent_pb2.Fastpath") -> str:
    ports = _ports(fastpath)
    span = f"{ports[0]} to {ports[-1]}" if len(ports) > 1 else "".join(map(str, ports))
    return f"{output.counted(fastpath.lanes, 'lane')} on UDP port{'s' if len(ports) > 1 else ''} {span}"


def _ports(fastpath: "agent_pb2.Fastpath") -> list[int]:
    """Return the ports of the lanes, which are in a row; each listens for IPv4 and IPv6."""
    return sorted({int(address.rpartition(":")[2]) for address in fastpath.listening})


def _small_buffers(buffers: "agent_pb2.SocketBuffers") -> list[tuple[str, output.Cell]]:
    if min(buffers.receive, buffers.send) >= buffers.wanted:
        return []
    have = f"{output.size(buffers.receive)} in, {output.size(buffers.send)} out"
    fix = "bursts may be dropped, raise net.core.rmem_max and wmem_max with sysctl"
    return [("buffers", Text(f"{have} instead of {output.size(buffers.wanted)}: {fix}", "yellow"))]


def _offloads(offloads: "Iterable[agent_pb2.Offload]") -> output.Cell:
    """Name those in use; a missing one, or one that was refused, with its reason."""
    smooth = [entry.name for entry in offloads if entry.on and not entry.failures]
    others = [
        f"{entry.name} {'on' if entry.on else 'off'}: {entry.reason}"
        for entry in offloads
        if not entry.on or entry.failures
    ]
    parts = [f"{', '.join(smooth)} on"] if smooth else []
    return Text("; ".join(parts + others) or "none", "yellow" if others else "")


def _controller(controller: "agent_pb2.Controller") -> output.Cell:
    since = output.span(controller.since_seconds)
    if controller.connected:
        return f"{controller.address}, connected for {since}"
    return Text(f"{controller.address}, not connected for {since}: {controller.error}", "yellow")


def packets(mode: int, peers: "Iterable[agent_pb2.Peer]" = ()) -> output.Cell:
    """Return how packets of a network travel (mesh.proto, Mode): encrypted, and if so by which ciphers."""
    if mode != Mode.SEALED:
        return Text("plain: not encrypted (Geneve)", "yellow")
    ciphers = sorted({_CIPHERS[peer.suite] for peer in peers if peer.suite in _CIPHERS})
    return f"sealed: encrypted (WireGuard{', ' if ciphers else ''}{' and '.join(ciphers)})"


def _peer_row(peer: "agent_pb2.Peer") -> tuple[output.Cell, ...]:
    return (
        f"{peer.name} (WireGuard)" if output.kind(peer.kind) == "wireguard" else peer.name,
        "\n".join(peer.addresses),
        "\n".join(endpoints(peer.endpoints)) or "not known",
        ", ".join(filter(None, (output.mode(peer.mode), output.suite(peer.suite)))),
        _session(peer),
        output.ago(peer.last_heard_seconds),
        _path_mtu(peer),
        output.size(peer.tx_bytes),
        output.size(peer.rx_bytes),
        str(sum(peer.drops.values())),
    )


def endpoints(lanes: "Iterable[str]") -> "Iterator[str]":
    """Yield where the lanes of a peer are: mostly at one address, on ports in a row."""
    ports: dict[str, list[int]] = {}
    for endpoint in lanes:
        address, _, port = endpoint.rpartition(":")
        ports.setdefault(address, []).append(int(port))
    for address, found in ports.items():
        row = len(found) > 1 and found == list(range(found[0], found[0] + len(found)))
        shown = [f"{found[0]}-{found[-1]}"] if row else map(str, found)
        yield f"{address}:{','.join(shown)}"


def _session(peer: "agent_pb2.Peer") -> output.Cell:
    """Return how old the keys are that packets to a peer are sealed with."""
    if int(peer.mode) != Mode.SEALED:
        return ""
    if peer.last_handshake_seconds < 0:
        return Text("none yet", "yellow")
    if peer.last_handshake_seconds > _SESSION_SECONDS:
        return f"ended ({output.span(peer.last_handshake_seconds)} old)"
    return f"{output.span(peer.last_handshake_seconds)} old"


def _path_mtu(peer: "agent_pb2.Peer") -> str:
    if not peer.path_mtu:
        return ""
    return str(peer.path_mtu) if peer.path_mtu_probed else f"{peer.path_mtu} assumed"


def as_dict(reply: "agent_pb2.StatusReply") -> dict[str, object]:
    """Return a status as --json shows it."""
    return {
        "name": reply.name,
        "node_id": reply.node_id,
        "network": reply.network,
        "network_number": reply.network_number,
        "mode": output.mode(reply.mode),
        "membership": reply.membership,
        "working": _working(reply),
        "addresses": list(reply.addresses),
        "interface": reply.interface,
        "mtu": reply.mtu,
        "mtu_reason": reply.mtu_reason,
        "fastpath": _fastpath_dict(reply.fastpath),
        "endpoints": [{"address": end.address, "port": end.port} for end in reply.endpoints],
        "revision": reply.revision,
        "digest": reply.digest.hex(),
        "map_age_seconds": _or_never(reply.map_age_seconds),
        "certificate_until": reply.certificate_until,
        "membership_until": reply.membership_until,
        "keys": rekeying.as_dict(reply),
        "controller": {
            "address": reply.controller.address,
            "connected": reply.controller.connected,
            "error": reply.controller.error,
            "since_seconds": reply.controller.since_seconds,
        },
        "peers": [_peer_dict(peer) for peer in reply.peers],
        "drops": _counters(reply.drops),
        "problems": [{"subject": problem.subject, "reason": problem.reason} for problem in reply.problems],
        "version": reply.version,
    }


def _fastpath_dict(fastpath: "agent_pb2.Fastpath") -> dict[str, object]:
    return {
        "running": fastpath.running,
        "pid": fastpath.pid,
        "backend": fastpath.backend,
        "reason": fastpath.reason,
        "uptime_seconds": fastpath.uptime_seconds,
        "restarts": fastpath.restarts,
        "listening": list(fastpath.listening),
        "lanes": fastpath.lanes or None,
        "ports": _ports(fastpath),
        "socket_buffers": _buffers_dict(fastpath),
        "version": fastpath.version,
        "offloads": [
            {"name": entry.name, "on": entry.on, "reason": entry.reason, "failures": entry.failures}
            for entry in fastpath.offloads
        ],
    }


def _buffers_dict(fastpath: "agent_pb2.Fastpath") -> dict[str, int] | None:
    if not fastpath.HasField("socket_buffers"):
        return None
    buffers = fastpath.socket_buffers
    return {"receive": buffers.receive, "send": buffers.send, "wanted": buffers.wanted}


def _peer_dict(peer: "agent_pb2.Peer") -> dict[str, object]:
    return {
        "name": peer.name,
        "node_id": peer.node_id,
        "addresses": list(peer.addresses),
        "endpoint": peer.endpoint,
        "endpoints": list(peer.endpoints),
        "kind": output.kind(peer.kind),
        "mode": output.mode(peer.mode),
        "suite": output.suite(peer.suite) or None,
        "last_handshake_seconds": _or_never(peer.last_handshake_seconds),
        "last_heard_seconds": _or_never(peer.last_heard_seconds),
        "path_mtu": peer.path_mtu or None,
        "path_mtu_probed": peer.path_mtu_probed,
        "tx_packets": peer.tx_packets,
        "tx_bytes": peer.tx_bytes,
        "rx_packets": peer.rx_packets,
        "rx_bytes": peer.rx_bytes,
        "drops": _counters(peer.drops),
    }


def _or_never(seconds: float) -> float | None:
    return None if seconds < 0 else seconds


def _counters(drops: "Mapping[str, int]") -> dict[str, int]:
    return dict(sorted(drops.items()))
