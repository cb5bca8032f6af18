"""Two hosts on one wire: network namespaces joined by a veth pair that imitates a network.

Wire modes:
    soft    veth as it comes: 64 KB super-packets cross uncut, as between two containers on one host
    cut     segmentation off at the senders: each frame fits the MTU; receivers get single frames
    nic     cut, plus GRO at the receiver: what a NIC and its driver do. The honest one
    routed  nic, with a router between the hosts: a third namespace that forwards
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROUTED = "routed"
# Mode -> what senders do in one piece, whether receivers put pieces together.
MODES = {"nic": ("off", "on"), "soft": ("on", "off"), "cut": ("off", "off"), ROUTED: ("off", "on")}


@dataclass
class Host:
    """One end of the wire."""

    namespace: str
    device: str
    address: str
    address_v6: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *argv: str) -> list[str]:
        """Return a command line that runs in this host."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, timeout: float = 30) -> str:
        """Run a command to its end and return what it printed.

        Raises:
            RuntimeError: it failed or took too long; with what it printed.

        """
        try:
            done = subprocess.run(
                self.command(*argv), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{' '.join(argv)}: no end after {timeout} s") from None
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *argv: str, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a daemon that ends with the wire."""
        with log.open("wb") as out:
            process = subprocess.Popen(self.command(*argv), stdout=out, stderr=out, env={**os.environ, **env})
        self.processes.append(process)
        return process

    def bring_up(self, device: str, addresses: list[str], mtu: int) -> None:
        """Address a device once it is there and bring it up.

        Raises:
            RuntimeError: it is not there after 5 s.

        """
        deadline = time.monotonic() + 5
        while not self.has(device) and time.monotonic() < deadline:
            time.sleep(0.05)
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            self.run("ip", "address", "replace", address, "dev", device, *nodad)
        self.run("ip", "link", "set", device, "mtu", str(mtu), "up")

    def has(self, device: str) -> bool:
        """Whether a network device of that name is there."""
        with contextlib.suppress(RuntimeError):
            return bool(self.run("ip", "link", "show", device))
        return False

    def end(self) -> None:
        """End what was started here; stopped daemons too."""
        for process in self.processes:
            process.terminate()
            process.send_signal(signal.SIGCONT)
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Hosts = tuple[Host, Host]


@contextlib.contextmanager
def wire(mode: str) -> Iterator[Hosts]:
    """Yield two joined hosts; whatever was started in them ends afterwards."""
    tag = f"ovb{os.getpid()}"
    hosts = (
        Host(f"{tag}a", "wa", "10.99.0.1", "fd99::1"),
        Host(f"{tag}b", "wb", "10.98.0.2", "fd98::2")
        if mode == ROUTED
        else Host(f"{tag}b", "wb", "10.99.0.2", "fd99::2"),
    )
    router = Host(f"{tag}r", "", "", "")
    try:
        for host in [*hosts, router]:
            subprocess.run(["ip", "netns", "add", host.namespace], check=True)
            host.run("ip", "link", "set", "lo", "up")
        if mode == ROUTED:
            _join_over(router, hosts)
        else:
            _join(*hosts)
        yield hosts
    finally:
        for host in [*hosts, router]:
            host.end()
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False, capture_output=True)


def shape(hosts: Hosts, mode: str) -> None:
    """Put the wire into a mode of MODES. A router's ends are always as in nic."""
    senders, receivers = MODES[mode]
    for host in hosts:
        _offloads(host, host.device, senders, receivers)


def _join(one: Host, other: Host) -> None:
    _veth(one, one.device, other, other.device)
    for host in (one, other):
        host.bring_up(host.device, [f"{host.address}/24", f"{host.address_v6}/64"], 1500)


def _join_over(router: Host, hosts: Hosts) -> None:
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for host, gateway, gateway_v6 in (
        (hosts[0], "10.99.0.254", "fd99::fe"),
        (hosts[1], "10.98.0.254", "fd98::fe"),
    ):
        port = f"r{host.device}"
        _veth(host, host.device, router, port)
        host.bring_up(host.device, [f"{host.address}/24", f"{host.address_v6}/64"], 1500)
        router.bring_up(port, [f"{gateway}/24", f"{gateway_v6}/64"], 1500)
        host.run("ip", "route", "add", "default", "via", gateway)
        host.run("ip", "-6", "route", "add", "default", "via", gateway_v6)
        _offloads(router, port, "off", "on")


def _veth(one: Host, device: str, other: Host, far_device: str) -> None:
    pair = ["type", "veth", "peer", "name", far_device, "netns", other.namespace]
    subprocess.run(["ip", "link", "add", device, "netns", one.namespace, *pair], check=True)
    for host, name in ((one, device), (other, far_device)):
        host.run("ip", "link", "set", name, "txqueuelen", "10000")


def _offloads(host: Host, device: str, senders: str, receivers: str) -> None:
    offloads = ["tso", senders, "gso", senders, "tx-udp-segmentation", senders, "gro", receivers]
    host.run("ethtool", "-K", device, *offloads)
