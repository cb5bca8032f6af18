"""Why a peer may not have answered, from what this host's agent knows of it, and what to do."""

from typing import TYPE_CHECKING

from overmesh.cli import output
from overmesh.cli.status import endpoints
from overmesh.model import Mode

if TYPE_CHECKING:
    from overmesh.proto import agent_pb2

# Heard within so many seconds, a peer is there: while it was pinged; within a keepalive, where its host was.
_LATELY, _KEPT_ALIVE = 5, 30


def why(peer: "agent_pb2.Peer", *, through_host: bool) -> tuple[str, str]:
    """Return the likely cause and a fix.

    Args:
        peer: as a status taken after the ping has it.
        through_host: its host was asked, by ICMP, and not its fastpath.

    """
    if output.kind(peer.kind) == "wireguard":
        return _stock(peer)
    if not peer.endpoint:
        return (
            f"no endpoint of {peer.name} is known",
            f"on {peer.name}, say where it is reached: `endpoints` in agent.toml, or --endpoint",
        )
    heard = output.ago(peer.last_heard_seconds)
    if 0 <= peer.last_heard_seconds <= (_KEPT_ALIVE if through_host else _LATELY):
        return _lately(peer, heard, through_host=through_host)
    where = ", ".join(endpoints(peer.endpoints))
    fix = f"see that its agent runs (meshctl status on {peer.name}) and that nothing shuts UDP to {where}"
    if int(peer.mode) == Mode.SEALED and peer.last_handshake_seconds < 0:
        return f"there is no session with {peer.name}: no handshake was answered", fix
    if peer.last_heard_seconds < 0:
        return f"{peer.name} was never heard", fix
    return f"{peer.name} was last heard {heard}", fix


def _stock(peer: "agent_pb2.Peer") -> tuple[str, str]:
    """Return the same of a stock WireGuard peer: its host alone answers, and may be a phone that sleeps."""
    if peer.last_heard_seconds < 0:
        return (
            f"{peer.name}, a stock WireGuard peer, was never heard",
            f"switch WireGuard on there, with what `meshctl peer config {peer.name}` prints",
        )
    return (
        f"{peer.name}, a stock WireGuard peer, was last heard {output.ago(peer.last_heard_seconds)}",
        "it may be asleep, or its firewall refuse ICMP: have it send something",
    )


def _lately(peer: "agent_pb2.Peer", heard: str, *, through_host: bool) -> tuple[str, str]:
    if through_host:
        return (
            f"the fastpath of {peer.name} was heard {heard}: its host may not answer ICMP",
            f"see its firewall; `meshctl ping {peer.name}` asks the fastpath",
        )
    return (
        f"{peer.name} was heard {heard}, but its answers come too late or not at all",
        f"give it more time (--timeout 10), and try meshctl ping from {peer.name} too",
    )
