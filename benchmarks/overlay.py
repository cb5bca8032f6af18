"""Side by side: every contender up at once, repetitions interleaved, medians and ratios.

    python -m benchmarks.overlay [--modes nic,soft,cut] [--repetitions 5] [--only NAME,NAME]

Absolute numbers of a small virtual machine mean little; the ratios between contenders that were
measured in one run do. Writes benchmarks/results/latest.json.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers import CONTENDERS, ROOT, Contender, Hosts
from benchmarks.wire import MODES, shape, wire

RESULTS = Path(__file__).parent / "results/latest.json"
PACED = ROOT / "fastpath/target/release/examples/paced"
BASE = "wireguard-go"
TICKS = os.sysconf("SC_CLK_TCK")

# Measured quantity -> heading; also the keys in the results file.
QUANTITIES = {
    "tcp1_gbps": "TCP 1 Gbit/s",
    "tcp4_gbps": "TCP 4 Gbit/s",
    "gbit_per_cpu_s": "Gbit/CPU-s",
    "kpps_64": "kpps 64 B",
    "kpps_1300": "kpps 1300 B",
    "rtt_idle_us": "RTT idle us",
    "rtt_load_us": "RTT load us",
    "rss_mib": "RSS MiB",
    "retransmits": "retransmits",
}


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--modes", default="nic", help=f"of {', '.join(MODES)}; default nic")
    parser.add_argument("--repetitions", type=int, default=1 if os.environ.get("QUICK") else 5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each TCP run")
    parser.add_argument("--only", default="", help="contenders, separated by commas")
    options = parser.parse_args()
    rows = measure_all(options)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    for mode in options.modes.split(","):
        show([row for row in rows if row["wire_mode"] == mode], mode)


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per contender and wire mode: medians and the repetitions behind them."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, wire() as hosts:
        contenders = connected(hosts, Path(scratch), options.only)
        for _ in range(options.repetitions):
            for mode in options.modes.split(","):
                shape(hosts, mode)
                for contender in contenders:
                    run = measure(hosts, contender, options.seconds)
                    runs.setdefault((contender.name, mode), []).append(run)
    return [
        {"name": name, "wire_mode": mode, **medians(repetitions), "repetitions": repetitions}
        for (name, mode), repetitions in runs.items()
    ]


def connected(hosts: Hosts, scratch: Path, only: str) -> list[Contender]:
    """Return the contenders that are up and answer; the others are named."""
    up = []
    for number, kind in enumerate(CONTENDERS, start=1):
        contender = kind(number, scratch)
        if only and contender.name not in only.split(","):
            continue
        if missing := contender.missing():
            print(f"left out: {contender.name}: {missing} not installed")
            continue
        contender.connect(hosts)
        hosts[0].run("ping", "-n", "-c", "1", "-w", "10", contender.target)
        up.append(contender)
    return up


def measure(hosts: Hosts, contender: Contender, seconds: float) -> dict[str, float]:
    """Return one repetition of every quantity."""
    busy = busy_seconds()
    one = transfer(hosts, contender, seconds, streams=1)
    busy = busy_seconds() - busy
    four = transfer(hosts, contender, seconds, streams=4)
    loaded = subprocess.Popen(
        hosts[0].command("ping", "-n", "-i", "0.01", "-c", str(int(seconds * 80)), contender.target),
        stdout=subprocess.PIPE,
        text=True,
    )
    transfer(hosts, contender, seconds, streams=1)
    return {
        "tcp1_gbps": one["gbps"],
        "tcp4_gbps": four["gbps"],
        "gbit_per_cpu_s": one["gbit"] / busy,
        "kpps_64": packet_rate(hosts, contender, 64),
        "kpps_1300": packet_rate(hosts, contender, 1300),
        "rtt_idle_us": rtt(hosts[0].run("ping", "-n", "-i", "0.003", "-c", "200", contender.target)),
        "rtt_load_us": rtt(loaded.communicate()[0]),
        "rss_mib": resident_mib(contender.pids),
        "retransmits": one["retransmits"],
    }


def transfer(hosts: Hosts, contender: Contender, seconds: float, streams: int) -> dict[str, float]:
    """Return what one iperf3 run from the first to the second host reached."""
    server = subprocess.Popen(hosts[1].command("iperf3", "-s", "-1"), stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    # Whatever the machine's default is: ratios differ with the congestion control.
    run = ["iperf3", "-c", contender.target, "-t", str(seconds), "-P", str(streams), "-C", "cubic", "-J"]
    end = json.loads(hosts[0].run(*run))["end"]
    server.wait(timeout=10)
    received, sent = end["sum_received"], end["sum_sent"]
    return {
        "gbps": received["bits_per_second"] / 1e9,
        "gbit": received["bytes"] * 8 / 1e9,
        "retransmits": sent["retransmits"],
    }


def packet_rate(hosts: Hosts, contender: Contender, payload: int) -> float:
    """Return the highest rate of UDP datagrams, in thousands a second, with at most 0.5 % lost."""
    ends = (host.namespace for host in hosts)
    rate = subprocess.run(
        [str(PACED), *ends, contender.target, str(payload)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    return int(rate.stdout) / 1000


def busy_seconds() -> float:
    """Return the CPU seconds the whole machine has worked: softirq work lands on whoever runs."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / TICKS


def resident_mib(pids: Sequence[int]) -> float:
    """Return the memory of one end's daemon in MiB (the larger of the two); 0 for the kernel's."""
    resident = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return max((int(found[1]) / 1024 for found in resident if found), default=0.0)


def rtt(ping: str) -> float:
    """Return the median round trip in microseconds of ping's output."""
    return statistics.median(float(found) * 1000 for found in re.findall(r"time=([\d.]+)", ping))


def medians(repetitions: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each quantity."""
    return {key: statistics.median(run[key] for run in repetitions) for key in QUANTITIES}


def show(rows: list[dict[str, Any]], mode: str) -> None:
    """Print one mode's table; in brackets the ratio to wireguard-go."""
    base = next((row for row in rows if row["name"] == BASE), None)
    table = Table("", *QUANTITIES.values(), title=f"wire mode {mode} (x: ratio to {BASE})")
    for row in rows:
        cells = [
            f"{row[key]:.4g}" + (f" ({row[key] / base[key]:.2f}x)" if base and base[key] else "")
            for key in QUANTITIES
        ]
        table.add_row(row["name"], *cells)
    # Wide enough for the table wherever it goes.
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
