"""What is measured side by side: each one connects the two hosts in its own way."""

import shutil
import subprocess
from pathlib import Path

from benchmarks.wire import Host

ROOT = Path(__file__).parents[1]
FASTPATH = ROOT / "fastpath/target/release/overmesh-fastpath"

Hosts = tuple[Host, Host]


class Contender:
    """One way to connect the hosts. `number` keeps the addresses and ports of all apart."""

    name: str
    mtu = 1420

    def __init__(self, number: int, scratch: Path) -> None:
        self.number = number
        self.scratch = scratch
        self.addresses = f"10.200.{number}.1", f"10.200.{number}.2"
        # Apart by name too: wireguard-go has one control socket per name, whatever the namespace.
        self.devices = f"ov{number}a", f"ov{number}b"
        self.port = 20000 + number
        self.pids: list[int] = []

    @property
    def target(self) -> str:
        """The address of the second host through this contender."""
        return self.addresses[1]

    def missing(self) -> str:
        """Return what this machine lacks for it, or nothing."""
        return ""

    def connect(self, hosts: Hosts) -> None:
        """Bring it up on both hosts."""
        raise NotImplementedError

    def bring_up(self, hosts: Hosts, index: int) -> None:
        """Address its device on one host and bring it up."""
        hosts[index].bring_up(self.devices[index], f"{self.addresses[index]}/24", self.mtu)

    def start(self, host: Host, *argv: str, env: dict[str, str] | None = None) -> None:
        """Start one of its daemons; its CPU time and memory are counted."""
        log = self.scratch / f"{self.name}-{host.namespace}.log"
        self.pids.append(host.start(*argv, log=str(log), env=env).pid)


class Link(Contender):
    """The wire itself, no overlay: the ceiling."""

    name = "link"

    def connect(self, hosts: Hosts) -> None:
        """Take the addresses that the wire already has."""
        self.addresses = hosts[0].address, hosts[1].address


class Vxlan(Contender):
    """The kernel's own overlay, unencrypted."""

    name = "vxlan"
    mtu = 1450

    def connect(self, hosts: Hosts) -> None:
        """Make a VXLAN device in each host."""
        for index, host in enumerate(hosts):
            ends = ["remote", hosts[1 - index].address, "local", host.address, "dstport", "4789"]
            vxlan = ["type", "vxlan", "id", str(self.number), *ends]
            host.run("ip", "link", "add", self.devices[index], *vxlan)
            self.bring_up(hosts, index)


class Wireguard(Contender):
    """wireguard-go, the user-space WireGuard that most products embed."""

    name = "wireguard-go"

    def missing(self) -> str:
        """Return the programs that are not there."""
        return ", ".join(name for name in ("wireguard-go", "wg") if not shutil.which(name))

    def connect(self, hosts: Hosts) -> None:
        """Start one in each host and introduce them."""
        secrets = [_output("wg", "genkey") for _ in hosts]
        publics = [_output("wg", "pubkey", stdin=secret) for secret in secrets]
        for index, host in enumerate(hosts):
            far = hosts[1 - index]
            self.start(host, "wireguard-go", "-f", self.devices[index], env={"WG_PROCESS_FOREGROUND": "1"})
            self.bring_up(hosts, index)
            key = self.scratch / f"wireguard-{index}.key"
            key.write_text(secrets[index])
            me = ["listen-port", str(self.port), "private-key", str(key)]
            peer = ["peer", publics[1 - index], "allowed-ips", f"{self.addresses[1 - index]}/32"]
            host.run("wg", "set", self.devices[index], *me, *peer, "endpoint", f"{far.address}:{self.port}")


class OvermeshPlain(Contender):
    """Our fastpath, plain Geneve, from a static file."""

    name = "overmesh-plain"

    def connect(self, hosts: Hosts) -> None:
        """Start one in each host from a static file."""
        for index, host in enumerate(hosts):
            far = hosts[1 - index]
            config = self.scratch / f"overmesh-{index}.toml"
            config.write_text(
                f'interface = "{self.devices[index]}"\nmtu = {self.mtu}\nnetwork_number = {self.number}\n'
                f"port = {self.port}\n\n"
                f'[[peer]]\nname = "far"\nprefixes = ["{self.addresses[1 - index]}/32"]\n'
                f'endpoints = ["{far.address}:{self.port}"]\n'
            )
            self.start(host, str(FASTPATH), "--config", str(config))
            self.bring_up(hosts, index)


CONTENDERS: tuple[type[Contender], ...] = (Link, Vxlan, Wireguard, OvermeshPlain)


def _output(*argv: str, stdin: str = "") -> str:
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout.strip()
