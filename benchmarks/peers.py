"""What is measured side by side: each one connects the two hosts in its own way."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from benchmarks.wire import Host, Hosts

ROOT = Path(__file__).parents[1]
# What benchmarks/install has built, each at the version it names.
BIN = ROOT / ".cache/bench/bin"


class Contender:
    """One way to connect the hosts. `number` keeps the addresses and ports of all apart."""

    name: str
    # What it runs: a path, or a name to look up.
    program: str = ""
    mtu = 1420
    # Compared in the gates: measured by QUICK too, and not to measure it is a failure.
    gate = False

    def __init__(self, number: int, scratch: Path) -> None:
        self.number = number
        self.scratch = scratch
        self.addresses = f"10.200.{number}.1", f"10.200.{number}.2"
        self.addresses_v6 = f"fd00:200:{number}::1", f"fd00:200:{number}::2"
        # Apart by name too: WireGuards have one control socket per name, whatever the namespace.
        self.devices = f"ov{number}a", f"ov{number}b"
        # Lanes take the ports above it.
        self.port = 20000 + 100 * number
        self.pids: list[int] = []

    @property
    def target(self) -> str:
        """The IPv4 address of the second host through this contender."""
        return self.addresses[1]

    @property
    def target_v6(self) -> str:
        """The IPv6 address of the second host through this contender."""
        return self.addresses_v6[1]

    def missing(self) -> str:
        """Return why it cannot be measured on this machine, or nothing."""
        if not self.program or shutil.which(self.program):
            return ""
        reason = BIN / f"{Path(self.program).name}.failed"
        return reason.read_text().strip() if reason.exists() else f"no {self.program}"

    def version(self) -> str:
        """Return which version is measured."""
        return f"Linux {os.uname().release}"

    def connect(self, hosts: Hosts) -> None:
        """Bring it up on both hosts."""
        raise NotImplementedError

    def bring_up(self, hosts: Hosts, index: int) -> None:
        """Address its device on one host and bring it up."""
        addresses = [f"{self.addresses[index]}/24", f"{self.addresses_v6[index]}/64"]
        hosts[index].bring_up(self.devices[index], addresses, self.mtu)

    def start(self, host: Host, *argv: str, env: dict[str, str] | None = None) -> None:
        """Start one of its daemons; its memory is counted."""
        log = self.scratch / f"{self.name}-{host.namespace}.log"
        self.pids.append(host.start(*argv, log=log, env=env or {}).pid)

    def pause(self) -> None:
        """Stop its daemons, so that their timers wake nobody while another is measured."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let its daemons go on."""
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)


class Link(Contender):
    """The wire itself, no overlay: the ceiling."""

    name = "link"
    gate = True

    def connect(self, hosts: Hosts) -> None:
        """Take the addresses that the wire already has."""
        self.addresses = hosts[0].address, hosts[1].address
        self.addresses_v6 = hosts[0].address_v6, hosts[1].address_v6


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
    """A WireGuard in user space that `wg` configures."""

    def command(self, device: str) -> list[str]:
        """Return the command line of its daemon, in the foreground."""
        return [self.program, "-f", device]

    def connect(self, hosts: Hosts) -> None:
        """Start one in each host and introduce them."""
        pairs = [key_pair() for _ in hosts]
        for index, host in enumerate(hosts):
            far = hosts[1 - index]
            self.start(host, *self.command(self.devices[index]), env={"WG_PROCESS_FOREGROUND": "1"})
            self.bring_up(hosts, index)
            key = self.scratch / f"{self.name}-{index}.key"
            key.write_text(pairs[index][0])
            me = ["listen-port", str(self.port), "private-key", str(key)]
            allowed = f"{self.addresses[1 - index]}/32,{self.addresses_v6[1 - index]}/128"
            peer = ["peer", pairs[1 - index][1], "allowed-ips", allowed]
            host.run("wg", "set", self.devices[index], *me, *peer, "endpoint", f"{far.address}:{self.port}")


class WireguardGo(Wireguard):
    """The user-space WireGuard that most products embed."""

    name = "wireguard-go"
    program = str(BIN / "wireguard")
    gate = True

    def version(self) -> str:
        """Return the version of the module and of the compiler."""
        built = _output("go", "version", "-m", self.program)
        module = re.search(r"\smod\s+\S+\s+(\S+)", built)
        compiler = re.search(r": (go\S+)", built)
        return " ".join(found[1] for found in (module, compiler) if found)


class Boringtun(Wireguard):
    """Cloudflare's WireGuard, in Rust."""

    name = "boringtun"
    program = str(BIN / "boringtun-cli")

    def version(self) -> str:
        """Return what it says of itself."""
        return _output(self.program, "--version")

    def command(self, device: str) -> list[str]:
        """Return the command line of its daemon, in the foreground."""
        return [self.program, "--foreground", "--disable-drop-privileges", device]


class Gotatun(Boringtun):
    """Mullvad's WireGuard, in Rust, which began as boringtun."""

    name = "gotatun"
    program = str(BIN / "gotatun")


class Nebula(Contender):
    """Slack's overlay at its best setting for two cores; AES-256-GCM."""

    name = "nebula"
    program = str(BIN / "nebula")
    cipher = "aes"
    gate = True

    def missing(self) -> str:
        """Return why it cannot be measured at its best."""
        reason = super().missing()
        if not reason and re.match(r"1\.(\d|1[01])\.", self.version()):
            return f"{self.version()} is older than its offloads: build 1.12 or later (Go 1.27.3)"
        return reason

    def version(self) -> str:
        """Return what it says of itself."""
        return _output(self.program, "-version").removeprefix("Version: ")

    def connect(self, hosts: Hosts) -> None:
        """Sign a certificate for each host and start a daemon in it."""
        folder = self.scratch / self.name
        folder.mkdir(exist_ok=True)
        certify = str(BIN / "nebula-cert")
        _output(certify, "ca", "-name", "ca", *_files(folder, "ca"))
        for index, host in enumerate(hosts):
            networks = f"{self.addresses[index]}/24,{self.addresses_v6[index]}/64"
            sign = ["sign", "-name", f"h{index}", "-networks", networks, *_files(folder, f"h{index}")]
            authority = ["-ca-crt", str(folder / "ca.crt"), "-ca-key", str(folder / "ca.key")]
            _output(certify, *sign, *authority)
            config = folder / f"h{index}.yml"
            config.write_text(self.config(folder, index, hosts[1 - index]))
            self.start(host, self.program, "-config", str(config))

    def config(self, folder: Path, index: int, far: Host) -> str:
        """Return one host's file."""
        theirs = [self.addresses[1 - index], self.addresses_v6[1 - index]]
        at = ", ".join(f'"{address}": ["{far.address}:{self.port}"]' for address in theirs)
        return (
            f"pki: {{ca: {folder}/ca.crt, cert: {folder}/h{index}.crt, key: {folder}/h{index}.key}}\n"
            f"static_host_map: {{{at}}}\n"
            "lighthouse: {am_lighthouse: false, interval: 60, hosts: []}\n"
            f"listen: {{host: 0.0.0.0, port: {self.port}, udp_offloads: true}}\n"
            f"cipher: {self.cipher}\n"
            "routines: 2\n"
            "punchy: {punch: false}\n"
            f"tun: {{dev: {self.devices[index]}, mtu: {self.mtu}, use_offloads: true}}\n"
            "logging: {level: error, format: text}\n"
            "firewall:\n"
            "  outbound: [{port: any, proto: any, host: any}]\n"
            "  inbound: [{port: any, proto: any, host: any}]\n"
        )


class NebulaChacha(Nebula):
    """The same with ChaCha20-Poly1305."""

    name = "nebula-chacha"
    cipher = "chachapoly"


class EasyTier(Contender):
    """A mesh in Rust; AES-GCM."""

    name = "easytier"
    program = str(BIN / "easytier-core")

    def version(self) -> str:
        """Return what it says of itself."""
        return _output(self.program, "--version")

    def connect(self, hosts: Hosts) -> None:
        """Start one in each host; the second listens. Inside it is IPv4 only."""
        self.addresses_v6 = "", ""
        for index, host in enumerate(hosts):
            listen = ["--listeners", f"udp://0.0.0.0:{self.port}"] if index else ["--no-listener"]
            seek = [] if index else ["--peers", f"udp://{hosts[1].address}:{self.port}"]
            network = ["--network-name", "bench", "--network-secret", "bench"]
            device = ["--dev-name", self.devices[index], "--ipv4", f"{self.addresses[index]}/24"]
            mtu = ["--mtu", str(self.mtu), "--rpc-portal", f"127.0.0.1:{self.port + 1000}"]
            self.start(host, self.program, *network, *device, *mtu, *listen, *seek)


def key_pair() -> tuple[str, str]:
    """Return a private key and its public one, as `wg` writes them."""
    secret = _output("wg", "genkey")
    return secret, _output("wg", "pubkey", stdin=secret)


def _files(folder: Path, name: str) -> list[str]:
    return ["-out-crt", str(folder / f"{name}.crt"), "-out-key", str(folder / f"{name}.key")]


def _output(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()
