"""wireguard-go, the reference in user space, is the other end of a sealed network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, missing, until

BINARY = Path(__file__).parents[2] / "fastpath/target/release/overmesh-fastpath"
PROGRAMS = ("wireguard-go", "wg")

pytestmark = pytest.mark.skipif(
    bool(missing()) or not all(shutil.which(name) for name in PROGRAMS),
    reason=f"needs {', '.join(PROGRAMS)}; {missing()}",
)

OURS = ("10.77.0.1", "fd77::1")
THEIRS = ("10.77.0.2", "fd77::2")


class Pair:
    """Our fastpath on host `ours` and wireguard-go on host `theirs`, in one segment."""

    def __init__(self, lab: Lab) -> None:
        self.ours, self.theirs = lab["ours"], lab["theirs"]
        self.folder = lab.directory
        (self.folder / "psk").write_text(self.ours.run("wg genpsk").stdout)
        for host in (self.ours, self.theirs):
            private = host.run("wg genkey").stdout
            (self.folder / f"{host.name}.key").write_text(private)
            public = host.run(f"sh -c 'echo {private.strip()} | wg pubkey'").stdout
            (self.folder / f"{host.name}.pub").write_text(public)

    def key(self, name: str) -> str:
        """Return a key by the name of its file."""
        return (self.folder / name).read_text().strip()

    def start_ours(self, *, endpoint: bool, psk: bool = False, psk_text: str = "") -> None:
        """Run our fastpath; without the other's endpoint it can only answer."""
        prefixes = ", ".join(f'"{address}/{128 if ":" in address else 32}"' for address in THEIRS)
        lines = [
            'interface = "om0"',
            'private_key_file = "ours.key"',
            f'addresses = ["{OURS[0]}/24", "{OURS[1]}/64"]',
            "[[peer]]",
            'name = "theirs"',
            f"prefixes = [{prefixes}]",
            f'public_key = "{self.key("theirs.pub")}"',
            *(['endpoints = ["192.0.2.2:51820"]'] if endpoint else []),
            *([f'preshared_key = "{psk_text or self.key("psk")}"'] if psk else []),
        ]
        (self.folder / "ours.toml").write_text("\n".join(lines) + "\n")
        self.process = self.ours.start(f"{BINARY} --config {self.folder}/ours.toml")
        until(lambda: "started" in self.process.log, "our fastpath")

    def start_theirs(self, *, endpoint: bool, psk: bool = False) -> None:
        """Run wireguard-go; without our endpoint it can only answer."""
        self.theirs.start("wireguard-go -f wg0")
        until(lambda: "wg0" in self.theirs.run("ip -o link show").stdout, "wireguard-go")
        secret = f" preshared-key {self.folder}/psk" if psk else ""
        where = " endpoint 192.0.2.1:51820" if endpoint else ""
        self.theirs.run(
            f"wg set wg0 private-key {self.folder}/theirs.key listen-port 51820 "
            f"peer {self.key('ours.pub')}{secret}{where} allowed-ips {OURS[0]}/32,{OURS[1]}/128"
        )
        self.theirs.run(f"ip address add {THEIRS[0]}/24 dev wg0")
        self.theirs.run(f"ip address add {THEIRS[1]}/64 dev wg0 nodad")
        self.theirs.run("ip link set wg0 mtu 1420 up")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two hosts with keys, nothing running."""
    with Lab("ours", "theirs") as lab:
        yield Pair(lab)


def ping(host: Host, address: str, size: int = 56) -> None:
    """Ping; the first may wait for the handshake."""
    host.run(f"ping -c 3 -i 0.2 -W 3 -s {size} -M do {address}")


@pytest.mark.parametrize("psk", [False, True], ids=["no psk", "psk"])
@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_ping(pair: Pair, initiator: str, psk: bool) -> None:
    pair.start_theirs(endpoint=initiator == "theirs", psk=psk)
    pair.start_ours(endpoint=initiator == "ours", psk=psk)
    first, second = (pair.ours, THEIRS), (pair.theirs, OURS)
    for host, addresses in (first, second) if initiator == "ours" else (second, first):
        ping(host, addresses[0])
        ping(host, addresses[1])
        ping(host, addresses[0], size=1420 - 28)


def test_other_preshared_key(pair: Pair) -> None:
    pair.start_theirs(endpoint=False, psk=True)
    pair.start_ours(endpoint=True, psk=True, psk_text=pair.ours.run("wg genpsk").stdout.strip())
    pair.ours.run(f"sh -c '! ping -c 1 -W 1 {THEIRS[0]}'")
    assert "latest handshake" not in pair.theirs.run("wg show").stdout


def test_roaming(pair: Pair) -> None:
    """wireguard-go changes its port, then we our address: each finds the other by what it sends."""
    pair.start_theirs(endpoint=False)
    pair.start_ours(endpoint=True)
    ping(pair.ours, THEIRS[0])
    pair.theirs.run("wg set wg0 listen-port 51999")
    ping(pair.theirs, OURS[0])
    ping(pair.ours, THEIRS[0])
    pair.ours.run("ip address delete 192.0.2.1/24 dev eth0")
    pair.ours.run("ip address add 192.0.2.99/24 dev eth0")
    ping(pair.ours, THEIRS[0])
    assert "endpoint: 192.0.2.99:51820" in pair.theirs.run("wg show").stdout


def test_restart(pair: Pair) -> None:
    """Who comes back with no session makes a new one; nobody has to wait for old keys to expire."""
    pair.start_theirs(endpoint=False)
    pair.start_ours(endpoint=True)
    ping(pair.ours, THEIRS[0])
    pair.process.kill()
    pair.process.wait()
    pair.start_ours(endpoint=True)
    ping(pair.ours, THEIRS[0])
