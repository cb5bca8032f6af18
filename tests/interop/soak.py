"""An hour of sealed traffic: two fastpaths and a wireguard-go, real timers, loss and memory sampled.

    python -m tests.interop.soak --minutes 60

Fails when memory grows, a session is lost, or packets are lost that no queue of the hosts has counted: on
a busy machine programs wake up late, and the kernel drops what does not fit their sockets. What it shows
of speed means nothing: the rates are low on purpose.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.sealed import BINARY, End, Ours, Remote, WireguardGo, ping
from tests.netns.lab import Lab, Process, until

SAMPLE = 15.0  # seconds
WARM_UP = 0.5  # of the run: a heap takes its time to settle, a leak goes on
MAX_GROWTH = 128  # KiB
MAX_UNEXPLAINED = 1e-5  # of all datagrams
LONGEST_SESSION = 200.0  # seconds: keys are refused after 180


@dataclass
class Stream:
    """An iperf3 client that runs as long as the soak."""

    name: str
    client: Process

    def verdict(self) -> tuple[int, int]:
        """Print how it went; return how many datagrams were lost, and how many were sent.

        Raises:
            SystemExit: the stream ended early.

        """
        result = json.loads(self.client.output)
        if "error" in result:
            raise SystemExit(f"FAILED: {self.name}: {result['error']}")
        if "sum" not in result["end"]:
            sent = result["end"]["sum_sent"]
            print(f"{self.name}: {sent['bytes']} bytes, {sent['retransmits']} segments sent again")
            return 0, 0
        total = result["end"]["sum"]
        print(f"{self.name}: {total['lost_packets']} of {total['packets']} datagrams lost")
        return total["lost_packets"], total["packets"]


@dataclass
class Watched:
    """What is sampled of one end."""

    end: End
    memory: list[int] = field(default_factory=list)  # KiB
    ages: dict[str, float] = field(default_factory=dict)  # of the newest handshake with each peer, seconds
    handshakes: int = 0
    oldest: float = 0.0

    def sample(self) -> str:
        """Look once, and return it as a line."""
        self.memory.append(self.end.rss)
        if not isinstance(self.end, Ours):
            return f"{self.end.host.name} {self.memory[-1]} KiB"
        stats = self.end.stats()
        for peer in stats.peers:
            age = peer.last_handshake_ms_ago / 1000
            self.handshakes += age < self.ages.get(peer.id, 1e9)
            self.ages[peer.id] = age
            self.oldest = max(self.oldest, age)
        drops = " ".join(f"{reason}={count}" for reason, count in sorted(stats.drops.items()) if count)
        return (
            f"{self.end.host.name} {self.memory[-1]} KiB, {self.handshakes} handshakes, drops: {drops or '-'}"
        )

    @property
    def overflows(self) -> int:
        """How many packets the kernel of this host has dropped because a program was late."""
        device = "om0" if isinstance(self.end, Ours) else "wg0"
        [link] = json.loads(self.end.host.run(f"ip -s -j link show dev {device}").stdout)
        names, values = (
            line.split()
            for line in self.end.host.read("/proc/net/snmp").splitlines()
            if line.startswith("Udp:")
        )
        udp = dict(zip(names, values, strict=True))
        return int(link["stats64"]["tx"]["dropped"]) + int(udp["RcvbufErrors"]) + int(udp["SndbufErrors"])

    @property
    def growth(self) -> int:
        """KiB by which memory has grown since the warm-up."""
        start = max(1, round(len(self.memory) * WARM_UP))
        return self.memory[-1] - max(self.memory[:start])


def stream(name: str, source: End, target: End, port: int, seconds: int, rate: str) -> Stream:
    """Start a stream between two ends."""
    server = target.host.start(f"iperf3 -s -1 -p {port} -B {target.addresses[0]} --forceflush")
    until(lambda: "listening" in server.output, "iperf3")
    flags = f"-c {target.addresses[0]} -p {port} -t {seconds} -J -i 0 {rate}"
    return Stream(name, source.host.start(f"iperf3 {flags}"))


def soak(minutes: float, binary: Path) -> bool:
    """Run, print samples and a verdict; return whether it is good."""
    seconds = int(60 * minutes)
    with Lab("a", "b", "w") as lab:
        a, b = (Ours(lab[name], number, lab.directory) for number, name in ((1, "a"), (2, "b")))
        w = WireguardGo(lab["w"], 3, lab.directory)
        a.start([Remote(b, b.endpoint, suite="aes"), Remote(w, w.endpoint)], binary=binary)
        b.start([Remote(a, a.endpoint, suite="aes")], binary=binary)
        w.start([Remote(a)])
        for far in (b, w):
            ping(a, far.addresses[0])
        streams = [
            stream("a to b, TCP", a, b, 5201, seconds, "-b 50M"),
            stream("b to a, UDP", b, a, 5202, seconds, "-u -b 1M -l 125"),
            stream("a to w, UDP", a, w, 5203, seconds, "-u -b 1M -l 125"),
            stream("w to a, UDP", w, a, 5204, seconds, "-u -b 1M -l 125"),
        ]
        watched = [Watched(end) for end in (a, b, w)]
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            print(f"{passed:5.0f} s  " + "; ".join(one.sample() for one in watched), flush=True)
            time.sleep(SAMPLE)
        for one in streams:
            one.client.wait(60)
        return judge(streams, watched, seconds)


def judge(streams: list[Stream], watched: list[Watched], seconds: int) -> bool:
    """Print what came of it and return whether it is good."""
    lost, sent = (sum(column) for column in zip(*(one.verdict() for one in streams), strict=True))
    overflows = {one.end.host.name: one.overflows for one in watched}
    print(f"queues of the hosts that were full: {overflows}")
    good: bool = lost - sum(overflows.values()) <= MAX_UNEXPLAINED * sent
    for one in (one for one in watched if isinstance(one.end, Ours)):
        least = len(one.ages) * int(seconds / LONGEST_SESSION)
        good &= one.growth <= MAX_GROWTH and one.handshakes >= least and one.oldest < LONGEST_SESSION
        print(
            f"{one.end.host.name}: {one.handshakes} handshakes with {len(one.ages)} peers, {least} due; no "
            f"session older than {one.oldest:.0f} s, memory {one.growth:+} KiB since the warm-up"
        )
    print("good" if good else "FAILED")
    return good


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Sealed traffic for a long time.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--binary", type=Path, default=BINARY)
    options = parser.parse_args()
    sys.exit(0 if soak(options.minutes, options.binary) else 1)


if __name__ == "__main__":
    main()
