"""Lanes over real interfaces: who carries what, and what a change of their number costs."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overmesh import rpc
from overmesh.proto import fastpath_pb2 as wire
from overmesh.proto.fastpath_pb2_grpc import FastpathStub
from tests.netns.lab import Host, Lab, Process, until

pytestmark = [
    pytest.mark.usefixtures("able"),
    pytest.mark.skipif(not shutil.which("iperf3"), reason="needs iperf3"),
]

MODES = {"plain": None, "chacha": wire.SUITE_CHACHA, "aes": wire.SUITE_AES}
# So many flows that all but surely every lane gets some.
FLOWS = 16
# The control sockets of wireguard-go are the machine's, not the lab's.
STOCK = "wg-lanes"


class Side:
    """A fastpath on a host of the lab, told over its socket what to do.

    Args:
        lab: where the host is.
        name: of the host.
        number: of the host: the last part of its addresses, and its private key.
        mode: of the network, one of MODES.

    """

    def __init__(self, lab: Lab, name: str, number: int, mode: str) -> None:
        self.host, self.number, self.mode = lab[name], number, mode
        self.address = f"10.77.0.{number}"
        self._capture = lab.directory / f"{name}.pcap"
        socket = lab.directory / f"{name}.sock"
        self._process = self.host.start(f"overmesh-fastpath --socket {socket} --pcap {self._capture}")
        until(socket.exists, "the socket")
        self._channel = grpc.insecure_channel(f"unix:{socket}", rpc.TO_FASTPATH)
        self._fastpath = FastpathStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def port(self) -> int:
        """Where its first lane listens."""
        return 6081 if self.mode == "plain" else 51820

    @property
    def private_key(self) -> bytes:
        return b"" if self.mode == "plain" else bytes([self.number] * 32)

    @property
    def public_key(self) -> bytes:
        key = X25519PrivateKey.from_private_bytes(bytes([self.number] * 32)).public_key()
        return b"" if self.mode == "plain" else key.public_bytes_raw()

    def apply(self, other: "Side", *, lanes: int, others: int) -> None:
        """Have so many lanes, and expect so many of the other."""
        self._fastpath.Apply(
            wire.ApplyRequest(
                tun="om0",
                mtu=1420,
                network_number=1,
                port=self.port,
                private_key=self.private_key,
                lanes=lanes,
                peers=[other.as_peer(others)],
            )
        )

    def as_peer(self, lanes: int) -> wire.Peer:
        """Return what the other is told of this host."""
        return wire.Peer(
            id=self.host.name,
            name=self.host.name,
            prefixes=[f"{self.address}/32"],
            endpoints=[f"192.0.2.{self.number}:{self.port}"],
            mode=wire.MODE_PLAIN if self.mode == "plain" else wire.MODE_SEALED,
            public_key=self.public_key,
            suite=MODES[self.mode],
            lanes=lanes,
        )

    def set_up(self) -> None:
        """Give the interface its address."""
        self.host.run(f"ip address add {self.address}/24 dev om0")
        self.host.run("ip link set om0 mtu 1420 up")

    def stats(self) -> wire.StatsReply:
        reply: wire.StatsReply = self._fastpath.Stats(wire.StatsRequest())
        return reply

    def captured(self, lane: int) -> int:
        """Return how many bytes passed a lane's queue."""
        suffix = f".{lane}" if lane else ""
        return self._capture.with_name(self._capture.name + suffix).stat().st_size

    def stop(self) -> None:
        """End the fastpath; its interface goes with it."""
        self._fastpath.Shutdown(wire.ShutdownRequest())
        self._process.wait()

    def close(self) -> None:
        self._channel.close()


Start = Callable[[str, int, int], tuple[Side, Side]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("a", "b") as lab:
        yield lab


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Return what starts two fastpaths in a mode, with so many lanes each."""
    started: list[Side] = []

    def both(mode: str, lanes_a: int, lanes_b: int) -> tuple[Side, Side]:
        a, b = Side(lab, "a", 1, mode), Side(lab, "b", 2, mode)
        started.extend((a, b))
        a.apply(b, lanes=lanes_a, others=lanes_b)
        b.apply(a, lanes=lanes_b, others=lanes_a)
        a.set_up()
        b.set_up()
        return a, b

    yield both
    for side in started:
        side.close()


def serve(host: Host) -> Process:
    """Run iperf3 for one client."""
    server = host.start("iperf3 -s -1 --forceflush")
    until(lambda: "listening" in server.output, "iperf3")
    return server


def transfer(source: Host, target: Host, address: str) -> None:
    """Send TCP in many flows, first there and then back."""
    for direction in ("", "-R"):
        server = serve(target)
        source.run(f"iperf3 -c {address} -P {FLOWS} -n 32M {direction}")
        server.wait()


def lost(said: str) -> int:
    """Return how many echoes a ping did not get answered."""
    counted = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert counted, said
    return int(counted[1]) - int(counted[2])


@pytest.mark.parametrize("mode", MODES)
def test_every_lane_carries_its_flows(start: Start, mode: str) -> None:
    a, b = start(mode, 2, 2)
    transfer(a.host, b.host, b.address)
    for side in (a, b):
        stats = side.stats()
        assert (stats.lanes, stats.handed_over) == (2, 0)
        assert {drop for drop in stats.drops if drop != "multicast"} == set()
        assert min(side.captured(lane) for lane in range(2)) > 1 << 20
        ports = {int(address.rpartition(":")[2]) for address in stats.listening}
        assert ports == {side.port, side.port + 1}


@pytest.mark.parametrize("mode", MODES)
def test_peer_with_fewer_lanes(start: Start, mode: str) -> None:
    """The kernel learns from the answers on which queue a flow can go by the short way."""
    a, b = start(mode, 2, 1)
    transfer(a.host, b.host, b.address)
    stats = a.stats()
    assert 0 < stats.handed_over < stats.peers[0].tx_packets / 20
    assert b.stats().handed_over == 0
    assert "lane_full" not in stats.drops


@pytest.mark.parametrize("mode", MODES)
def test_number_of_lanes_changes_under_traffic(start: Start, mode: str) -> None:
    """Lanes open before peers hear of them, and close after."""
    a, b = start(mode, 1, 1)
    a.host.run(f"ping -c 1 -W 3 {b.address}")
    serve(b.host)
    flows = a.host.start(f"iperf3 -c {b.address} -P 4 -t 4")
    pinging = a.host.start(f"ping -c 400 -i 0.01 -W 2 -q {b.address}")
    for lanes, others in ((2, 1), (2, 2), (2, 1), (1, 1), (2, 1), (2, 2)):
        a.apply(b, lanes=lanes, others=others)
        b.apply(a, lanes=lanes, others=others)
    assert flows.wait() == 0, flows.log
    pinging.wait()
    assert lost(pinging.output) <= 5, pinging.output


def test_stock_wireguard_has_one_lane(lab: Lab, start: Start) -> None:
    if not all(map(shutil.which, ("wireguard-go", "wg"))):
        pytest.skip("needs wireguard-go and wg")
    a, b = start("chacha", 2, 1)
    # In the place of b's fastpath, by the same key and address.
    b.stop()
    stock = lab["b"]
    key = lab.directory / "b.key"
    key.write_bytes(base64.b64encode(b.private_key))
    stock.start(f"wireguard-go -f {STOCK}")
    until(lambda: STOCK in stock.run("ip -o link show").stdout, "wireguard-go")
    stock.run(
        f"wg set {STOCK} private-key {key} listen-port {b.port} "
        f"peer {base64.b64encode(a.public_key).decode()} allowed-ips {a.address}/32"
    )
    stock.run(f"ip address add {b.address}/24 dev {STOCK}")
    stock.run(f"ip link set {STOCK} mtu 1420 up")
    transfer(a.host, stock, b.address)
    stats = a.stats()
    assert 0 < stats.handed_over < stats.peers[0].tx_packets / 20
    assert f"endpoint: 192.0.2.1:{a.port}\n" in stock.run(f"wg show {STOCK}").stdout
