from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from overmesh.agent.metrics import PEERS_APART, numbers
from overmesh.proto import agent_pb2

STATUS = agent_pb2.StatusReply(
    name="a",
    network="mesh",
    version="1",
    membership="member",
    revision=42,
    map_age_seconds=1.5,
    controller=agent_pb2.Controller(address="192.0.2.1:7443", connected=True),
    fastpath=agent_pb2.Fastpath(
        running=True, restarts=2, offloads=[agent_pb2.Offload(name="uso", on=False, failures=3)]
    ),
    drops={"no_route": 7},
    peers=[
        agent_pb2.Peer(name="b", tx_packets=5, tx_bytes=500, path_mtu=1420, drops={"replay": 1}),
        agent_pb2.Peer(name="c", tx_packets=2, tx_bytes=200, last_heard_seconds=-1),
    ],
)


class Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def text(status: agent_pb2.StatusReply) -> list[str]:
    registry = CollectorRegistry()
    registry.register(Fixed(list(numbers(status))))
    return generate_latest(registry).decode().splitlines()


def test_what_status_shows_is_there_as_numbers() -> None:
    assert {
        'overmesh_agent_info{network="mesh",node="a",version="1"} 1.0',
        'overmesh_controller_connected{controller="192.0.2.1:7443"} 1.0',
        "overmesh_map_revision 42.0",
        "overmesh_map_age_seconds 1.5",
        "overmesh_fastpath_up 1.0",
        "overmesh_fastpath_restarts_total 2.0",
        'overmesh_offload_on{offload="uso"} 0.0',
        'overmesh_offload_failures_total{offload="uso"} 3.0',
        'overmesh_drops_total{reason="no_route"} 7.0',
        "overmesh_tx_packets_total 7.0",
        'overmesh_peer_tx_bytes_total{node="b"} 500.0',
        'overmesh_peer_path_mtu{node="b"} 1420.0',
        'overmesh_peer_last_heard_seconds{node="c"} -1.0',
        'overmesh_peer_drops_total{node="b",reason="replay"} 1.0',
    } <= set(text(STATUS))


def test_a_crowd_of_peers_is_given_as_sums() -> None:
    crowd = agent_pb2.StatusReply()
    crowd.peers.extend(
        agent_pb2.Peer(name=str(number), rx_packets=number) for number in range(PEERS_APART + 1)
    )
    lines = text(crowd)
    assert f"overmesh_rx_packets_total {sum(range(PEERS_APART + 1)):.1f}" in lines
    assert not any("node=" in line and line.startswith("overmesh_peer") for line in lines)
