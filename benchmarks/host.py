"""What a host pays for having thousands of peers, by the agent's own code and a real fastpath.

    python -m benchmarks.host [--peers 10000] [--changes 20]

A map of that many members is made and signed as controllers do, and taken in step by step as the agent does
it, in a namespace of its own: first whole, then one peer that moves, again and again, of which the median
counts. Idle peers are those without packets, and so without sessions. Writes the table in docs/scale.md.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks.control.rig import used
from benchmarks.report import replaced
from overmesh.agent.apply import reconcile
from overmesh.agent.desired import Made, Own, desire
from overmesh.agent.fastpath import Fastpath
from overmesh.agent.mapfile import MapFile
from overmesh.agent.netlink import Netlink
from overmesh.agent.peermap import Outcome, Replica
from overmesh.config import AgentConfig
from overmesh.controller.peermap import NetworkMap, Position
from overmesh.model import Endpoint, Network, Node, NodeEndpoints, Record
from overmesh.proto import mesh_pb2
from overmesh.proto.roots import Roots
from overmesh.proto.signed import map_key, sign
from tests.netns.lab import Lab, missing
from tests.unit.agent.world import root_certificate

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/scale.md"
BEGIN = "<!-- written by `python -m benchmarks.host`: change nothing between the marks -->"
INSIDE = "--inside"

STEPS = {
    "verify": "parse, digest, signatures",
    "view": "what may be used (`Replica.view`)",
    "desire": "how the host should be (`desire`)",
    "keep": "on disk (`mapfile.py`)",
    "apply": "compare, and give it to kernel and fastpath (`reconcile`)",
    "agent": "all of it, CPU of the agent",
    "fastpath": "all of it, CPU of the fastpath",
}


@dataclass
class Mesh:
    """A network of so many members besides this host, as its controllers have it."""

    peers: int
    items: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make and sign all records."""
        self._key = generate_private_key(SECP256R1())
        self.network = Network("mesh", 7, (ip_network("10.64.0.0/12"),), serial=1)
        self.me = self._node(0)
        everybody = (self._node(number) for number in range(1, self.peers + 1))
        places = (self._place(number) for number in range(self.peers + 1))
        records: Iterable[Record] = (self.network, self.me, *everybody, *places)
        for record in records:
            self.items[map_key(record)] = self.signed(record)

    @property
    def roots(self) -> Roots:
        """The mesh root."""
        return Roots((root_certificate(self._key),))

    def signed(self, record: Record) -> bytes:
        """Return a record as the root signs it."""
        return sign(record, self._key)

    def moved(self, number: int, port: int) -> dict[str, bytes]:
        """Return the change by which a peer is somewhere else."""
        place = self._place(number)
        (endpoint,) = place.endpoints
        record = replace(place, endpoints=(replace(endpoint, port=port),), serial=port)
        return {map_key(record): self.signed(record)}

    def _node(self, number: int) -> Node:
        key = X25519PrivateKey.generate().public_key().public_bytes_raw()
        address = ip_address("10.64.0.1") + number
        expires = int(time.time()) + 86400
        return Node(
            f"n{number}", "mesh", f"host{number}", key, addresses=(address,), serial=1, not_after=expires
        )

    def _place(self, number: int) -> NodeEndpoints:
        return NodeEndpoints(
            f"n{number}", "mesh", (Endpoint(ip_address("192.0.2.1") + number, 51820),), serial=1
        )


@dataclass
class Host:
    """One host: the agent's parts, and how long each takes (seconds)."""

    replica: Replica
    mapfile: MapFile
    fastpath: Fastpath
    netlink: Netlink
    config: AgentConfig
    private_key: bytes
    made: Made = field(default_factory=Made)
    took: dict[str, float] = field(default_factory=dict)

    async def take_in(self, replies: Sequence[bytes]) -> dict[str, float]:
        """Take in what a controller sends; return how long each step took.

        Raises:
            RuntimeError: something of it was not used, or not applied.

        """
        self.took = {}
        with self._timed("verify"):
            outcomes = [self.replica.receive(mesh_pb2.WatchReply.FromString(reply)) for reply in replies]
        with self._timed("view"):
            view = self.replica.view(time.time())
        with self._timed("desire"):
            underlay = await self.netlink.underlay()
            own = Own((), self.private_key)
            desired = desire(view.map, self.config, underlay, own, self.made)
        with self._timed("apply"):
            done = await reconcile(desired, underlay, self.netlink, self.fastpath)
        with self._timed("keep"):
            self.mapfile.save(self.replica.held())
        if outcomes[-1] is not Outcome.CHANGED or view.problems or done.problems or not done.operations:
            raise RuntimeError(f"not taken over: {outcomes[-1]}, {view.problems}, {done}")
        return self.took

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took[step] = time.perf_counter() - began


Times = dict[str, float]


@dataclass
class Found:
    """Seconds of the first map, and of each change; KiB of both processes per peer; bytes on disk."""

    first: Times
    change: Times
    memory: dict[str, float]
    disk: tuple[int, float]


async def measure(mesh: Mesh, changes: int, place: Path) -> Found:
    """Take in the map, then so many changes, on this host."""
    config = AgentConfig(runtime_dir=place, state_dir=place, endpoints=("192.0.2.1",))
    peers = NetworkMap(1, mesh.items)
    network, me = (mesh.items[map_key(record)] for record in (mesh.network, mesh.me))
    empty = used(os.getpid()).memory
    replica = Replica(mesh.roots, network, mesh.me.id, me)
    fastpath = Fastpath(config, place / "fastpath.log", lambda: None)
    async with Netlink.open() as netlink:
        netlink.create_tun(config.interface)
        running = asyncio.create_task(fastpath.run())
        while not fastpath.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pid = (await fastpath.stats()).pid
        bare = used(pid).memory
        private_key = X25519PrivateKey.generate().private_bytes_raw()
        host = Host(replica, MapFile(place / "map.json"), fastpath, netlink, config, private_key)
        first = await _with_cpu(host.take_in(peers.snapshot()), pid)
        memory = {"agent": used(os.getpid()).memory - empty, "fastpath": used(pid).memory - bare}
        whole = host.mapfile.path.stat().st_size
        each = []
        for turn in range(1, changes + 1):
            peers.apply(1 + turn, mesh.moved(turn, 50000 + turn))
            delta = peers.since(Position(turn, replica.digest.to_bytes()))
            assert delta
            each.append(await _with_cpu(host.take_in([delta]), pid))
        grown = (host.mapfile.path.stat().st_size - whole) / changes
        await fastpath.shutdown()
        await running
    # What is counted in hundredths of a second is the mean, everything else the median.
    change = {step: statistics.median(times[step] for times in each) for step in each[0]}
    change |= {who: statistics.mean(times[who] for times in each) for who in ("agent", "fastpath")}
    per_peer = {who: kib / mesh.peers for who, kib in memory.items()}
    return Found(first, change, per_peer, (whole, grown))


async def _with_cpu(work: Awaitable[Times], pid: int) -> Times:
    agent, fastpath = time.process_time(), used(pid).cpu
    times = dict(await work)
    return times | {"agent": time.process_time() - agent, "fastpath": used(pid).cpu - fastpath}


def table(peers: int, changes: int, found: Found) -> str:
    """Return the results in Markdown."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores; {peers:,} peers, {changes} changes.",
        "",
        "| ms | first map | one peer has moved |",
        "|---|---:|---:|",
        *(
            f"| {title} | {1000 * found.first[step]:,.0f} | {1000 * found.change[step]:,.1f} |"
            for step, title in STEPS.items()
        ),
        "",
        "| | |",
        "|---|---:|",
        *(f"| memory of the {who}, per idle peer | {kib:.1f} KiB |" for who, kib in found.memory.items()),
        f"| map on disk | {found.disk[0] / 1e6:.1f} MB |",
        f"| and for each change | {found.disk[1] / 1e3:.1f} KB |",
    ]
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Measure on a host of a lab, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host")
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.inside:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            found = asyncio.run(measure(Mesh(said.peers), said.changes, Path(place)))
        print(table(said.peers, said.changes, found))
        return
    if why_not := missing():
        sys.exit(f"bench-host: not possible here: {why_not}")
    with Lab("host") as lab:
        command = [sys.executable, "-m", "benchmarks.host", INSIDE]
        numbers = ["--peers", str(said.peers), "--changes", str(said.changes)]
        text = lab["host"].run([*command, *numbers], timeout=600).stdout
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), text, BEGIN))
    print(text)


if __name__ == "__main__":
    main()
