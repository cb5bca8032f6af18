"""Our own fastpath among the contenders, run from a static file (fastpath/README.md)."""

import subprocess
from pathlib import Path

from benchmarks.peers import ROOT, Contender, key_pair
from benchmarks.wire import Hosts

FASTPATH = ROOT / "fastpath/target/release/overmesh-fastpath"


class Overmesh(Contender):
    """Two hosts of one network."""

    program = str(FASTPATH)
    gate = True
    # "chacha" or "aes"; "" for a plain network.
    suite = ""
    lanes = 1

    def version(self) -> str:
        """Return the commit of the working tree, of which `missing` makes sure that it is what was built."""
        commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        done = subprocess.run(commit, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "outside of git"

    def missing(self) -> str:
        """Return why it cannot be measured: not built, or built from older sources."""
        target = str(Path(self.program).relative_to(ROOT))
        stale = subprocess.call(["make", "-C", str(ROOT), "--question", target]) != 0
        return super().missing() or (f"older than its sources: run `make {target}`" if stale else "")

    def connect(self, hosts: Hosts) -> None:
        """Start one in each host."""
        pairs = [key_pair() for _ in hosts]
        for index, host in enumerate(hosts):
            secret = self.scratch / f"{self.name}-{index}.key"
            secret.touch(mode=0o600)
            secret.write_text(pairs[index][0])
            config = self.scratch / f"{self.name}-{index}.toml"
            config.write_text(self.config(index, secret.name, pairs[1 - index][1], hosts[1 - index].address))
            self.start(host, self.program, "--config", str(config))
            self.bring_up(hosts, index)

    def config(self, index: int, secret: str, public_key: str, far: str) -> str:
        """Return one host's file."""
        theirs = f'"{self.addresses[1 - index]}/32", "{self.addresses_v6[1 - index]}/128"'
        lanes = [f"lanes = {self.lanes}"] if self.lanes > 1 else []
        sealed = [f'private_key_file = "{secret}"'] if self.suite else []
        keys = [f'public_key = "{public_key}"', f'suite = "{self.suite}"'] if self.suite else []
        lines = [
            f'interface = "{self.devices[index]}"',
            f"mtu = {self.mtu}",
            f"network_number = {self.number}",
            f"port = {self.port}",
            *lanes,
            *sealed,
            "[[peer]]",
            'name = "far"',
            f"prefixes = [{theirs}]",
            f'endpoints = ["{far}:{self.port}"]',
            *lanes,
            *keys,
        ]
        return "\n".join(lines) + "\n"


class OvermeshPlain(Overmesh):
    """Plain Geneve."""

    name = "overmesh-plain"


class OvermeshChacha(Overmesh):
    """WireGuard on the wire."""

    name = "overmesh-chacha"
    suite = "chacha"


class OvermeshAes(Overmesh):
    """WireGuard with AES-256-GCM."""

    name = "overmesh-aes"
    suite = "aes"


class OvermeshPlainLanes(OvermeshPlain):
    """Plain, on both cores."""

    name = "overmesh-plain-2lanes"
    lanes = 2
    gate = False


class OvermeshChachaLanes(OvermeshChacha):
    """ChaCha, on both cores."""

    name = "overmesh-chacha-2lanes"
    lanes = 2
    gate = False


class OvermeshAesLanes(OvermeshAes):
    """AES, on both cores."""

    name = "overmesh-aes-2lanes"
    lanes = 2
    gate = False
