"""TCP through a path that loses 5 % of all datagrams and reorders some: our fastpath beside wireguard-go.

    python -m tests.interop.lossy --repetitions 7

Each pair of hosts speaks through a relay, which spoils what it forwards. Repetitions take turns; the
result is the ratio of the medians.
"""

import argparse
import heapq
import json
import random
import select
import socket
import statistics
import threading
import time
from contextlib import ExitStack

from tests.interop.sealed import PORT, End, Ours, Remote, WireguardGo
from tests.interop.wireguard import socket_in
from tests.netns.lab import Lab, until

LOSS = 0.05
REORDERED = 0.1
DELAY = 0.002  # seconds, one way
DETOUR = 0.003  # more, for what is reordered


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
    make = WireguardGo if kind == "wireguard-go" else Ours
    ends = make(lab["a"], 1, lab.directory), make(lab["b"], 2, lab.directory)
    for end, far in (ends, ends[::-1]):
        end.start([Remote(far, Relay.endpoint(end.number), suite=kind.removeprefix("overmesh-"))])
    until(
        lambda: not ends[0].host.run(f"ping -c 1 -W 1 {ends[1].addresses[0]}", check=False).returncode, kind
    )
    return ends


def throughput(source: End, target: End, seconds: float) -> float:
    """Return Mbit/s of one TCP stream."""
    server = target.host.start(f"iperf3 -s -1 -B {target.addresses[0]} --forceflush")
    until(lambda: "listening" in server.output, "iperf3")
    done = source.host.run(f"iperf3 -J -c {target.addresses[0]} -t {seconds:g}", timeout=seconds + 30)
    server.wait()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6


def main() -> None:
    """Measure by turns and print the ratio."""
    parser = argparse.ArgumentParser(description="TCP over a lossy path, side by side.")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    kinds = "wireguard-go", "overmesh-chacha", "overmesh-aes"
    results: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        pairs = {kind: pair(stack, kind, seed) for seed, kind in enumerate(kinds)}
        for _ in range(options.repetitions):
            for kind, (a, b) in pairs.items():
                results[kind].append(throughput(a, b, options.seconds))
    base = statistics.median(results["wireguard-go"])
    for kind, rates in results.items():
        median = statistics.median(rates)
        shown = " ".join(f"{rate:.1f}" for rate in rates)
        print(f"{kind:16} {median:6.1f} Mbit/s, ratio {median / base:.2f}   ({shown})", flush=True)


if __name__ == "__main__":
    main()
