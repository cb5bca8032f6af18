"""What `meshctl status` shows, as numbers for Prometheus (docs/metrics.md)."""

from collections.abc import Iterable, Mapping

from prometheus_client import Metric

from overmesh.agent.service import Service
from overmesh.errors import NotYetError
from overmesh.metrics import counter, gauge
from overmesh.proto import agent_pb2

# Beyond that many peers only their sums are given: each label of each peer is a time series.
PEERS_APART = 250

# Fields of agent.proto's Peer.
_COUNTED = {
    "tx_packets": "Packets sent through the tunnel",
    "tx_bytes": "Bytes of them, as they are inside",
    "rx_packets": "Packets that came out of the tunnel",
    "rx_bytes": "Bytes of them, as they are inside",
}
_MEASURED = {
    "last_heard_seconds": "Since it was last heard of; -1: never",
    "last_handshake_seconds": "Age of its session; -1: none",
    "path_mtu": "Bytes of the largest packet that reaches it",
}

Totals = Mapping[tuple[str, ...], float]


async def gather(service: Service) -> Iterable[Metric]:
    """Return the numbers of this host; none while its agent is starting."""
    try:
        return numbers(await service.status())
    except NotYetError:
        return ()


def numbers(status: agent_pb2.StatusReply) -> Iterable[Metric]:
    """Yield what a status says."""
    yield from _host(status)
    yield from _fastpath(status.fastpath)
    yield counter("overmesh_drops", "Packets that ended here, by reason", _by_name(status.drops), "reason")
    yield from _all_peers(status.peers)
    if len(status.peers) <= PEERS_APART:
        yield from _each_peer(status.peers)


def _host(status: agent_pb2.StatusReply) -> Iterable[Metric]:
    who = (status.network, status.name, status.version)
    controller = status.controller
    yield gauge("overmesh_agent_info", "Who this is", {who: 1}, "network", "node", "version")
    yield gauge("overmesh_member", "1 unless this node was removed", _one(status.membership == "member"))
    yield gauge(
        "overmesh_controller_connected",
        "1 while the map is followed",
        {(controller.address,): controller.connected},
        "controller",
    )
    yield gauge("overmesh_map_revision", "Of the map that is in force here", _one(status.revision))
    yield gauge(
        "overmesh_map_age_seconds",
        "Since a controller confirmed the map; -1: never",
        _one(status.map_age_seconds),
    )
    yield gauge("overmesh_peers", "Peers in the map", _one(len(status.peers)))
    yield gauge(
        "overmesh_problems",
        "What is not as it should be",
        _one(len(status.problems)),
    )


def _fastpath(fastpath: agent_pb2.Fastpath) -> Iterable[Metric]:
    yield gauge("overmesh_fastpath_up", "1 while the fastpath carries packets", _one(fastpath.running))
    yield counter("overmesh_fastpath_restarts", "Times that it was started again", _one(fastpath.restarts))
    states: Totals = {(offload.name,): float(offload.on) for offload in fastpath.offloads}
    failures: Totals = {(offload.name,): float(offload.failures) for offload in fastpath.offloads}
    yield gauge("overmesh_offload_on", "1 where the kernel makes packets cheap", states, "offload")
    yield counter("overmesh_offload_failures", "Times that the kernel refused it", failures, "offload")


def _all_peers(peers: Iterable[agent_pb2.Peer]) -> Iterable[Metric]:
    for field, help_ in _COUNTED.items():
        total = sum(getattr(peer, field) for peer in peers)
        yield counter(f"overmesh_{field}", help_, _one(total))


def _each_peer(peers: Iterable[agent_pb2.Peer]) -> Iterable[Metric]:
    for field, help_ in _COUNTED.items():
        yield counter(f"overmesh_peer_{field}", f"{help_}; by peer", _of_each(peers, field), "node")
    for field, help_ in _MEASURED.items():
        yield gauge(f"overmesh_peer_{field}", f"{help_}; by peer", _of_each(peers, field), "node")
    drops: Totals = {(peer.name, reason): count for peer in peers for reason, count in peer.drops.items()}
    yield counter("overmesh_peer_drops", "Packets that ended here; by peer", drops, "node", "reason")


def _of_each(peers: Iterable[agent_pb2.Peer], field: str) -> Totals:
    return {(peer.name,): getattr(peer, field) for peer in peers}


def _by_name(counts: Mapping[str, int]) -> Totals:
    return {(name,): count for name, count in counts.items()}


def _one(value: float) -> Totals:
    """Return the value of a number without labels."""
    return {(): value}
