"""Linux's own Geneve, in a guest, exchanges IPv4 and IPv6 packets with our fastpath."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.guest import guest, missing
from tests.interop.static import StaticFastpath, namespace

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"a guest needs {missing()}")

VNI = 78
SCRIPT = f"""
for module in virtio_pci virtio_net geneve; do modprobe $module; done
while [ ! -d /sys/class/net/eth0 ]; do sleep .05; done
ip address add 10.99.1.2/24 dev eth0
ip link set eth0 up
# Bare IP packets, as RFC 8926 allows and Overmesh's plain mode sends; the default is Ethernet.
ip link add gnv0 type geneve id {VNI} remote 10.99.1.1 dstport 6081 innerprotoinherit
ip link set gnv0 mtu 1420 up
ip address add 10.78.0.2/24 dev gnv0
ip address add fd78::2/64 dev gnv0 nodad
echo READY
while ! ping -c 1 -W 1 10.78.0.1 >/dev/null; do sleep .2; done
ping -q -c 5 -i 0.2 -s 1300 10.78.0.1
ping -q -c 5 -i 0.2 fd78::1
echo FROM-GUEST-DONE
sleep 60
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, StaticFastpath, Path]]:
    scratch = tmp_path_factory.mktemp("guest")
    with namespace() as host:
        for line in (
            "tuntap add tap0 mode tap",
            "address add 10.99.1.1/24 dev tap0",
            "link set tap0 up",
        ):
            subprocess.run(["ip", "-n", host, *line.split()], check=True)
        peer = ("10.78.0.2/32", "fd78::2/128")
        addresses = ("10.78.0.1/24", "fd78::1/64")
        (scratch / "fastpath").mkdir()
        (scratch / "guest").mkdir()
        with (
            StaticFastpath(host, scratch / "fastpath", VNI, addresses, peer, "10.99.1.2:6081") as fastpath,
            guest(
                ["ip", "netns", "exec", host], "tap0", ["geneve", "ipv6"], SCRIPT, scratch / "guest"
            ) as log,
        ):
            yield host, fastpath, log


@pytest.mark.parametrize("target", ["10.78.0.2", "fd78::2"])
def test_the_kernel_answers_us(console: tuple[str, StaticFastpath, Path], target: str) -> None:
    host, fastpath, _ = console
    done = subprocess.run(
        ["ip", "netns", "exec", host, "ping", "-q", "-c", "5", "-i", "0.2", "-w", "20", target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "5 received" in done.stdout, done.stdout + fastpath.log()


def test_we_answer_the_kernel(console: tuple[str, StaticFastpath, Path]) -> None:
    _, fastpath, log = console
    fastpath.wait_until(lambda: "FROM-GUEST-DONE" in log.read_text(errors="replace"), "the guest's pings")
    received = re.findall(r"(\d) received", log.read_text(errors="replace").partition("READY")[2])
    assert received == ["5", "5"], log.read_text(errors="replace")[-2000:]
