"""Linux's own WireGuard, in a guest, exchanges packets with our fastpath: both roles, both families."""

import re
import shlex
from pathlib import Path

import pytest

from tests.interop import guest as guests
from tests.interop.sealed import PORT, End, Ours, Remote, missing_programs, ping
from tests.netns.lab import Lab, missing, until

MISSING = " ".join((guests.missing(), missing_programs(), missing())).strip()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"a guest needs {MISSING}")

MODULES = ["wireguard", "ipv6"]
SCRIPT = """
for module in virtio_pci virtio_net wireguard; do modprobe $module; done
while [ ! -d /sys/class/net/eth0 ]; do sleep .05; done
ip address add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip link add wg0 type wireguard
echo $PRIVATE > /private
echo $PSK > /psk
wg set wg0 private-key /private listen-port $PORT
wg set wg0 peer $PEER preshared-key /psk allowed-ips 10.77.0.1/32,fd77::1/128 $ENDPOINT
ip link set wg0 mtu 1420 up
ip address add 10.77.0.2/24 dev wg0
ip address add fd77::2/64 dev wg0 nodad
echo READY
# Who has no endpoint waits until it was called.
while [ -z "$(wg show wg0 endpoints | grep 192)" ]; do sleep .2; done
while ! ping -c 1 -W 6 10.77.0.1 >/dev/null; do sleep .2; done
ping -q -c 5 -i 0.2 -s 1392 10.77.0.1
ping -q -c 5 -i 0.2 fd77::1
wg show wg0
echo FROM-GUEST-DONE
sleep 60
"""


class Kernel(End):
    """A guest in the place of a host of the lab."""

    def script(self, peer: Remote) -> str:
        """Return what the guest runs, given what it knows of our fastpath."""
        variables = {
            "PRIVATE": self.private_key,
            "PSK": peer.preshared_key,
            "PEER": peer.end.public_key,
            "PORT": str(PORT),
            "ENDPOINT": f"endpoint {peer.endpoint}" if peer.endpoint else "",
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()) + SCRIPT

    def plug_in(self) -> None:
        """Put a tap where the host's interface is."""
        for command in (
            "address flush dev eth0",
            "link add bridge type bridge",
            "tuntap add tap0 mode tap",
            "link set eth0 master bridge",
            "link set tap0 master bridge up",
            "link set bridge up",
        ):
            self.host.run(f"ip {command}")


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_traffic(initiator: str, tmp_path: Path) -> None:
    """Only the initiator knows where the other is. Packets of all sizes, with a preshared key."""
    with Lab("ours", "theirs") as lab:
        ours = Ours(lab["ours"], 1, lab.directory)
        theirs = Kernel(lab["theirs"], 2, lab.directory)
        psk = ours.host.run("wg genpsk").stdout.strip()
        ours.start([Remote(theirs, theirs.endpoint if initiator == "ours" else "", psk)])
        theirs.plug_in()
        script = theirs.script(Remote(ours, ours.endpoint if initiator == "theirs" else "", psk))
        with guests.guest(theirs.host.enter("net"), "tap0", MODULES, script, tmp_path) as console:
            until(lambda: begun(ours, theirs, initiator), "a handshake", 60)
            for address in theirs.addresses:
                ping(ours, address)
            ping(ours, theirs.addresses[0], size=1420 - 28)
            until(lambda: "FROM-GUEST-DONE" in console.read_text(errors="replace"), "its pings", 60)
        shown = console.read_text(errors="replace").partition("READY")[2]
        assert re.findall(r"(\d) received", shown)[-2:] == ["5", "5"], shown
        assert "preshared key" in shown, shown


def begun(ours: Ours, theirs: End, initiator: str) -> bool:
    """Whether there is a session; we begin one by sending something."""
    if initiator == "ours":
        ours.host.run(f"ping -c 1 -W 1 {theirs.addresses[0]}", check=False)
    [peer] = ours.stats().peers
    return peer.last_handshake_ms_ago >= 0
