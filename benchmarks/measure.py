"""One repetition of every quantity, for one contender."""

import contextlib
import json
import math
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import ROOT, Contender
from benchmarks.wire import Host, Hosts

PACED = ROOT / "fastpath/target/release/examples/paced"
TICKS = os.sysconf("SC_CLK_TCK")

# Measured quantity -> heading; also the keys in the results file.
QUANTITIES = {
    "tcp1_gbps": "TCP 1 Gbit/s",
    "tcp4_gbps": "TCP 4 Gbit/s",
    "tcp1_v6_gbps": "TCP 1 IPv6",
    "gbit_per_cpu_s": "Gbit/CPU-s",
    "kpps_64": "kpps 64 B",
    "kpps_1300": "kpps 1300 B",
    "rtt_idle_us": "RTT idle us",
    "rtt_load_us": "RTT load us",
    "rss_mib": "RSS MiB",
    "retransmits": "retransmits",
}


class Transfer(NamedTuple):
    """What one iperf3 run reached."""

    gbps: float
    gbit: float
    retransmits: float


def measure(hosts: Hosts, contender: Contender, seconds: float) -> dict[str, float]:
    """Return one repetition of every quantity; `seconds` is the length of each TCP run.

    Raises:
        RuntimeError: something did not come to its end; with what and why.

    """
    target = contender.target
    warm_up(hosts, contender)
    busy = busy_seconds()
    one = transfer(hosts, target, seconds)
    busy = busy_seconds() - busy
    run = {
        "tcp1_gbps": one.gbps,
        "tcp4_gbps": transfer(hosts, target, seconds, streams=4).gbps,
        "gbit_per_cpu_s": one.gbit / busy,
        "retransmits": one.retransmits,
        "rtt_load_us": rtt_under_load(hosts, target, seconds),
        "rtt_idle_us": rtt(hosts[0].run("ping", "-n", "-i", "0.003", "-c", "200", target)),
        "kpps_64": packet_rate(hosts, target, 64),
        "kpps_1300": packet_rate(hosts, target, 1300),
        "rss_mib": resident_mib(contender.pids),
    }
    if contender.target_v6:
        run["tcp1_v6_gbps"] = transfer(hosts, contender.target_v6, seconds).gbps
    return run


def warm_up(hosts: Hosts, contender: Contender) -> None:
    """Wait until it answers: it may just have been started, or its sessions aged while it was stopped.

    Raises:
        RuntimeError: it has not answered for 15 s.

    """
    deadline = time.monotonic() + 15
    for target in filter(None, (contender.target, contender.target_v6)):
        while not answers(hosts[0], target):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{target} does not answer")
            time.sleep(0.1)


def answers(host: Host, target: str) -> bool:
    """Whether a ping comes back within a second."""
    with contextlib.suppress(RuntimeError):
        return bool(host.run("ping", "-n", "-c", "1", "-W", "1", target))
    return False


def transfer(hosts: Hosts, target: str, seconds: float, streams: int = 1) -> Transfer:
    """Return what TCP from the first to the second host reached, in whole seconds: iperf3 knows no others."""
    # Whatever the machine's default is: ratios differ with the congestion control.
    run = ["iperf3", "-c", target, "-t", str(math.ceil(seconds)), "-P", str(streams), "-C", "cubic", "-J"]
    listen = hosts[1].command("iperf3", "-s", "-1", "--forceflush")
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as server:
        # The client has its own end; then the server must have had one.
        guard = threading.Timer(seconds + 20, server.kill)
        guard.start()
        try:
            wait_for_line(server, "Server listening")
            end = json.loads(hosts[0].run(*run, timeout=seconds + 15))["end"]
        except BaseException:
            server.kill()
            raise
        finally:
            server.communicate()
            guard.cancel()
    received = end["sum_received"]
    return Transfer(
        gbps=received["bits_per_second"] / 1e9,
        gbit=received["bytes"] * 8 / 1e9,
        retransmits=end["sum_sent"]["retransmits"],
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process prints up to a line with this text."""
    assert process.stdout
    while text not in (line := process.stdout.readline()):
        if not line:
            raise RuntimeError(f"{process.args!r} ended without '{text}'")


def rtt_under_load(hosts: Hosts, target: str, seconds: float) -> float:
    """Return the median round trip in microseconds while TCP sends all it can."""
    # Only what is sent while TCP has found its rate and before it ends.
    length = math.ceil(seconds)
    ping_for = f"timeout -s INT {length - 0.2} ping -n -i 0.01 {target}"
    argv = hosts[0].command("sh", "-c", f"sleep 0.6; exec {ping_for}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ping:
        try:
            transfer(hosts, target, length + 1)
            return rtt(ping.communicate(timeout=20)[0])
        except BaseException:
            ping.kill()
            raise


def packet_rate(hosts: Hosts, target: str, payload: int) -> float:
    """Return the highest rate of UDP datagrams, in thousands a second, with at most 0.5 % lost."""
    ends = (host.namespace for host in hosts)
    paced = [str(PACED), *ends, target, str(payload)]
    try:
        rate = subprocess.run(paced, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.SubprocessError as error:
        raise RuntimeError(str(error)) from None
    return int(rate.stdout) / 1000


def busy_seconds() -> float:
    """Return the CPU seconds the whole machine has worked: softirq work lands on whoever runs.

    What is niced is left out: none of the measured is, only what others do meanwhile.
    """
    user, _nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + system + irq + softirq) / TICKS


def resident_mib(pids: Sequence[int]) -> float:
    """Return the memory of one end's daemon in MiB (the larger of the two); 0 for the kernel's.

    Raises:
        RuntimeError: a daemon has ended.

    """
    resident = [re.search(r"VmRSS:\s+(\d+)", _status(pid)) for pid in pids]
    if not all(resident):
        raise RuntimeError("a daemon has ended")
    return max((int(found[1]) / 1024 for found in resident if found), default=0.0)


def _status(pid: int) -> str:
    status = Path(f"/proc/{pid}/status")
    return status.read_text() if status.exists() else ""


def rtt(ping: str) -> float:
    """Return the median round trip in microseconds of ping's output.

    Raises:
        RuntimeError: nothing came back.

    """
    trips = [float(found) * 1000 for found in re.findall(r"time=([\d.]+)", ping)]
    if not trips:
        raise RuntimeError("ping: no answer")
    return statistics.median(trips)
