"""The ends of a sealed network by hand, on the hosts of a lab: our fastpath, and wireguard-go."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from overmesh import rpc
from overmesh.proto import fastpath_pb2, fastpath_pb2_grpc
from tests.netns.lab import FASTPATH_DIR, Host, Process, until

BINARY = FASTPATH_DIR / "overmesh-fastpath"
PROGRAMS = ("wireguard-go", "wg")
PORT = 51820
MTU = 1420
CONTROL = "/var/run/wireguard"


def missing_programs() -> str:
    """Return which programs are not there."""
    return ", ".join(name for name in PROGRAMS if not shutil.which(name))


@dataclass(frozen=True)
class Remote:
    """What an end knows of another.

    Attributes:
        end: the other.
        endpoint: where it is, address:port; empty: this end can only answer.
        preshared_key: as `wg genpsk` prints it; empty for none.
        suite: chacha or aes; for our fastpath only.

    """

    end: "End"
    endpoint: str = ""
    preshared_key: str = ""
    suite: str = "chacha"


class End:
    """A host with keys and overlay addresses, nothing running yet.

    Args:
        host: where it runs.
        number: the last part of its addresses.
        folder: where its files go; shared by all ends.

    """

    def __init__(self, host: Host, number: int, folder: Path) -> None:
        self.host, self.number, self.folder = host, number, folder
        self.addresses = f"10.77.0.{number}", f"fd77::{number}"
        self.private_key = host.run("wg genkey").stdout.strip()
        self.public_key = host.run(f"sh -c 'echo {self.private_key} | wg pubkey'").stdout.strip()
        self.key_file = folder / f"{host.name}.key"
        self.key_file.touch(0o600)
        self.key_file.write_text(self.private_key)
        self.process: Process

    @property
    def endpoint(self) -> str:
        """Where others find it, by IPv4."""
        return f"192.0.2.{self.number}:{PORT}"

    @property
    def prefixes(self) -> list[str]:
        """Return its overlay addresses as prefixes."""
        return [f"{self.addresses[0]}/32", f"{self.addresses[1]}/128"]

    @property
    def rss(self) -> int:
        """Resident memory of its process in KiB."""
        status = self.host.read(f"/proc/{self.process.pid}/status")
        return int(status.partition("VmRSS:")[2].split()[0])

    @property
    def processor_time(self) -> float:
        """Seconds that its process has run, in user mode and in the kernel."""
        fields = self.host.read(f"/proc/{self.process.pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End its process as a crash would."""
        self.process.kill()
        self.process.wait()


class Ours(End):
    """Our fastpath, from a static file."""

    def start(self, peers: Sequence[Remote], *, lanes: int = 1, binary: Path = BINARY) -> None:
        """Run it with these peers."""
        lines = [
            'interface = "om0"',
            f"lanes = {lanes}",
            f'private_key_file = "{self.key_file}"',
            f'addresses = ["{self.addresses[0]}/24", "{self.addresses[1]}/64"]',
            *(line for peer in peers for line in _table(peer)),
        ]
        config = self.folder / f"{self.host.name}.toml"
        config.write_text("\n".join(lines) + "\n")
        self.socket = self.folder / f"{self.host.name}.sock"
        self.process = self.host.start(f"{binary} --config {config} --socket {self.socket}")
        until(lambda: "started" in self.process.log, "our fastpath")

    def stats(self) -> fastpath_pb2.StatsReply:
        """Return its counters."""
        with grpc.insecure_channel(f"unix:{self.socket}", options=rpc.TO_FASTPATH) as channel:
            stub = fastpath_pb2_grpc.FastpathStub(channel)  # type: ignore[no-untyped-call]
            reply: fastpath_pb2.StatsReply = stub.Stats(fastpath_pb2.StatsRequest(), timeout=5)
            return reply

    def drops(self, reason: str) -> int:
        """Return how many packets it has dropped for a reason."""
        return self.stats().drops.get(reason, 0)


class WireguardGo(End):
    """wireguard-go, the reference in user space."""

    program = "wireguard-go"

    def start(self, peers: Sequence[Remote]) -> None:
        """Run it with these peers."""
        # A folder of its own for the socket by which `wg` speaks to it: the machine has one for all.
        self.host.run(f"mkdir -p {CONTROL}")
        self.host.run(f"mount -t tmpfs none {CONTROL}")
        self.process = self.host.start(f"{self.program} -f wg0")
        until(lambda: "wg0" in self.host.run("ip -o link show").stdout, "wireguard-go")
        self.host.run(f"wg set wg0 private-key {self.key_file} listen-port {PORT}")
        for peer in peers:
            self.set_peer(peer)
        self.host.run(f"ip address add {self.addresses[0]}/24 dev wg0")
        self.host.run(f"ip address add {self.addresses[1]}/64 dev wg0 nodad")
        self.host.run(f"ip link set wg0 mtu {MTU} up")

    def set_peer(self, peer: Remote) -> None:
        """Introduce a peer."""
        words = f"wg set wg0 peer {peer.end.public_key} allowed-ips {','.join(peer.end.prefixes)}"
        if peer.preshared_key:
            secret = self.folder / f"{self.host.name}.psk"
            secret.write_text(peer.preshared_key)
            words += f" preshared-key {secret}"
        if peer.endpoint:
            words += f" endpoint {peer.endpoint}"
        self.host.run(words)

    def latest_handshake(self) -> int:
        """Return when its newest handshake was, in seconds since 1970; 0 if there was none."""
        shown = self.host.run("wg show wg0 latest-handshakes").stdout.split()
        return max(map(int, shown[1::2]), default=0)


def ping(end: End, target: str, *, size: int = 56, count: int = 3) -> None:
    """Ping; the first may wait for the handshake."""
    end.host.run(f"ping -c {count} -i 0.2 -W 3 -s {size} -M do {target}")


def _table(peer: Remote) -> list[str]:
    prefixes = ", ".join(f'"{prefix}"' for prefix in peer.end.prefixes)
    return [
        "[[peer]]",
        f'name = "{peer.end.host.name}"',
        f"prefixes = [{prefixes}]",
        f'public_key = "{peer.end.public_key}"',
        f'suite = "{peer.suite}"',
        *([f'endpoints = ["{peer.endpoint}"]'] if peer.endpoint else []),
        *([f'preshared_key = "{peer.preshared_key}"'] if peer.preshared_key else []),
    ]
