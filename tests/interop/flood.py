"""What established peers keep of their throughput while a third host floods ours.

    python -m tests.interop.flood --rate 20000

The flooder shares this machine's processors, so each flood is compared with the same one to another socket
of the same host, where it costs the flooder and the kernel as much. Repetitions take turns.
"""

import argparse
import base64
import os
import statistics
import time
from collections.abc import Callable

from tests.interop.lossy import throughput
from tests.interop.sealed import PORT, Ours, Remote, ping
from tests.interop.wireguard import Flood, Initiator, junk, socket_in
from tests.netns.lab import Lab

SINK = 9


def garbage(_: bytes) -> bytes:
    """Return what looks like a handshake and was made without the host's public key."""
    return b"\x01\x00\x00\x00" + os.urandom(144)


def stranger(remote: bytes) -> bytes:
    """Return an initiation that is right in all but who makes it."""
    return Initiator(os.urandom(32), remote).initiation()


KINDS: dict[str, Callable[[bytes], bytes]] = {"garbage": garbage, "junk, signed": junk, "strangers": stranger}


def cost(end: Ours, seconds: float, flood: Flood) -> float:
    """Return microseconds of the fastpath's processor time per datagram, and end the flood."""
    before, counted = end.processor_time, sum(end.stats().drops.values())
    time.sleep(seconds)
    spent, counted = end.processor_time - before, sum(end.stats().drops.values()) - counted
    flood.stop()
    return 1e6 * spent / counted


def main() -> None:
    """Measure by turns and print the ratios."""
    parser = argparse.ArgumentParser(description="Throughput under a flood of handshakes.")
    parser.add_argument("--rate", type=int, default=20_000, help="datagrams a second")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    names = "to another socket", *KINDS
    results: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, int] = dict.fromkeys(names, 0)
    with Lab("a", "b", "flooder") as lab:
        a, b = (Ours(lab[name], number, lab.directory) for number, name in ((1, "a"), (2, "b")))
        a.start([Remote(b, b.endpoint)])
        b.start([Remote(a)])
        ping(a, b.addresses[0])
        sink = socket_in(b.host)
        sink.bind(("", SINK))
        key = base64.b64decode(b.public_key)
        for name, make in KINDS.items():
            with_flood = Flood(lab["flooder"], (f"192.0.2.{b.number}", PORT), key, options.rate, make)
            print(f"{name}: {cost(b, options.seconds, with_flood):.1f} us of the fastpath's time each")
        for _ in range(options.repetitions):
            for name in names:
                port = PORT if name in KINDS else SINK
                flood = Flood(
                    lab["flooder"], (f"192.0.2.{b.number}", port), key, options.rate, KINDS.get(name, junk)
                )
                results[name].append(throughput(a, b, options.seconds))
                counts[name] += flood.stop()
        drops = {reason: count for reason, count in sorted(b.stats().drops.items()) if count}
        sink.close()
    base = statistics.median(results[names[0]])
    for name, rates in results.items():
        median = statistics.median(rates)
        shown = " ".join(f"{rate:.0f}" for rate in rates)
        sent = counts[name] / options.repetitions / options.seconds
        print(f"{name:18} {median:6.0f} Mbit/s, {median / base:.3f}; some {sent:.0f} a second ({shown})")
    print(f"drops: {drops}")


if __name__ == "__main__":
    main()
