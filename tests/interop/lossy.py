"""TCP through a path that loses 5 % of all datagrams and reorders some: our fastpath beside wireguard-go.

    python -m tests.interop.lossy --repetitions 7

Each pair of hosts speaks through a relay, which spoils what it forwards. Repetitions take turns; the
result is the ratio of the medians, by congestion control: cubic takes loss for congestion, bbr does not.
The wireguard-go is the one that `make bench` built, or Debian's.
"""

import argparse
import heapq
import json
import random
import select
import socket
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import product
from pathlib import Path

from tests.interop.sealed import PORT, End, Ours, Remote, WireguardGo
from tests.interop.wireguard import socket_in
from tests.netns.lab import Lab, until

LOSS = 0.05
REORDERED = 0.1
DELAY = 0.002  # seconds, one way
DETOUR = 0.003  # more, for what is reordered
CURRENT = Path(__file__).parents[2] / ".cache/bench/bin/wireguard"
CONGESTION = "cubic", "bbr"
KINDS = "wireguard-go", "overmesh-chacha", "overmesh-aes"


class CurrentWireguardGo(WireguardGo):
    """The newest that this machine has."""

    program = str(CURRENT) if CURRENT.exists() else WireguardGo.program


class Relay:
    """Forwards datagrams between hosts 1 and 2 of a lab, from host 3, as a bad path would."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._dice = random.Random(seed)
        self._sides = [socket_in(lab["relay"]) for _ in range(2)]
        for number, side in enumerate(self._sides, 1):
            side.bind(("192.0.2.3", PORT + number))
            side.connect((f"192.0.2.{number}", PORT))
        self._due: list[tuple[float, int, socket.socket, bytes]] = []
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    @staticmethod
    def endpoint(number: int) -> str:
        """Return where the host of a number finds the other."""
        return f"192.0.2.3:{PORT + number}"

    def stop(self) -> None:
        """Forward no more."""
        self._ended.set()
        self._thread.join()
        for side in self._sides:
            side.close()

    def _forward(self) -> None:
        while not self._ended.is_set():
            wait = min(max(self._due[0][0] - time.monotonic(), 0), 0.1) if self._due else 0.1
            for side in select.select(self._sides, [], [], wait)[0]:
                self._take(side, self._sides[1 - self._sides.index(side)])
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, target, datagram = heapq.heappop(self._due)
                target.send(datagram)

    def _take(self, side: socket.socket, target: socket.socket) -> None:
        datagram = side.recv(2048)
        if self._dice.random() < LOSS:
            return
        self._count += 1  # keeps the order of what is due at one time
        at = time.monotonic() + DELAY + (DETOUR if self._dice.random() < REORDERED else 0)
        heapq.heappush(self._due, (at, self._count, target, datagram))


def pair(stack: ExitStack, kind: str, seed: int) -> tuple[End, End]:
    """Return two ends that reach each other through a relay."""
    lab = stack.enter_context(Lab("a", "b", "relay"))
    relay = Relay(lab, seed)
    stack.callback(relay.stop)
    make = CurrentWireguardGo if kind == "wireguard-go" else Ours
    ends = make(lab["a"], 1, lab.directory), make(lab["b"], 2, lab.directory)
    for end, far in (ends, ends[::-1]):
        end.start([Remote(far, Relay.endpoint(end.number), suite=kind.removeprefix("overmesh-"))])
    until(
        lambda: not ends[0].host.run(f"ping -c 1 -W 1 {ends[1].addresses[0]}", check=False).returncode, kind
    )
    return ends


def throughput(source: End, target: End, seconds: float, congestion: str = "cubic") -> float:
    """Return Mbit/s of one TCP stream."""
    server = target.host.start(f"iperf3 -s -1 -B {target.addresses[0]} --forceflush")
    until(lambda: "listening" in server.output, "iperf3")
    done = source.host.run(
        f"iperf3 -J -C {congestion} -c {target.addresses[0]} -t {seconds:g}", timeout=seconds + 30
    )
    server.wait()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6


def main() -> None:
    """Measure by turns and print the ratios."""
    parser = argparse.ArgumentParser(description="TCP over a lossy path, side by side.")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    results: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        pairs = {kind: pair(stack, kind, seed) for seed, kind in enumerate(KINDS)}
        for _ in range(options.repetitions):
            for congestion, kind in product(CONGESTION, KINDS):
                results[congestion, kind].append(throughput(*pairs[kind], options.seconds, congestion))
    print(f"{CurrentWireguardGo.program}: {_version(CurrentWireguardGo.program)}")
    for (congestion, kind), rates in results.items():
        median, base = (statistics.median(results[congestion, one]) for one in (kind, KINDS[0]))
        shown = " ".join(f"{rate:.1f}" for rate in rates)
        print(
            f"{congestion} {kind:16} {median:6.1f} Mbit/s, ratio {median / base:.2f}   ({shown})", flush=True
        )


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("\n")[0]


if __name__ == "__main__":
    main()
