"""Two hosts on one wire: network namespaces joined by a veth pair that imitates a network.

Wire modes:
    soft  veth as it comes: 64 KB super-packets cross uncut, as between two containers on one host
    cut   segmentation off at the senders: each frame fits the MTU; receivers get single frames
    nic   cut, plus GRO at the receiver: what a NIC and its driver do. The honest one
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MODES = {"soft": ("on", "off"), "cut": ("off", "off"), "nic": ("off", "on")}


@dataclass
class Host:
    """One end of the wire."""

    namespace: str
    device: str
    address: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *argv: str) -> list[str]:
        """Return a command line that runs in this host."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, timeout: float = 60) -> str:
        """Run a command to its end and return what it printed.

        Raises:
            RuntimeError: it failed; with what it printed.

        """
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *argv: str, log: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a daemon that ends with the wire."""
        with Path(log).open("wb") as out:
            process = subprocess.Popen(
                self.command(*argv), stdout=out, stderr=out, env={**os.environ, **(env or {})}
            )
        self.processes.append(process)
        return process

    def bring_up(self, device: str, address: str, mtu: int) -> None:
        """Address a device once it is there and bring it up."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                self.run("ip", "address", "replace", address, "dev", device)
                break
            time.sleep(0.05)
        self.run("ip", "link", "set", device, "mtu", str(mtu), "up")


@contextlib.contextmanager
def wire() -> Iterator[tuple[Host, Host]]:
    """Yield two joined hosts; whatever was started in them ends afterwards."""
    tag = f"ovb{os.getpid()}"
    hosts = Host(f"{tag}a", "wa", "10.99.0.1"), Host(f"{tag}b", "wb", "10.99.0.2")
    try:
        for host in hosts:
            subprocess.run(["ip", "netns", "add", host.namespace], check=True)
            host.run("ip", "link", "set", "lo", "up")
        pair = ["veth", "peer", "name", "wb", "netns", hosts[1].namespace]
        subprocess.run(["ip", "link", "add", "wa", "netns", hosts[0].namespace, "type", *pair], check=True)
        for host in hosts:
            host.run("ip", "address", "add", f"{host.address}/24", "dev", host.device)
            host.run("ip", "link", "set", host.device, "txqueuelen", "10000", "up")
        yield hosts
    finally:
        for host in hosts:
            for process in host.processes:
                process.terminate()
            for process in host.processes:
                process.wait(timeout=10)
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False, capture_output=True)


def shape(hosts: tuple[Host, Host], mode: str) -> None:
    """Put the wire into a mode of MODES."""
    senders, receivers = MODES[mode]
    for host in hosts:
        offloads = ["tso", senders, "gso", senders, "tx-udp-segmentation", senders, "gro", receivers]
        host.run("ethtool", "-K", host.device, *offloads)
