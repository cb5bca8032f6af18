"""tshark, an independent decoder, reads every field of the packets between two fastpaths."""

import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.static import StaticFastpath, namespace

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("tshark"), reason="capturing needs root and tshark"
)

VNI = 0xABCDE
UNDERLAY = {"ip": ("192.0.2.1", "192.0.2.2"), "ipv6": ("2001:db8::1", "2001:db8::2")}


def layers(outer: str, scratch: Path) -> list[dict[str, Any]]:
    """Return the decoded packets of two pings, IPv4 and IPv6, over an underlay of one family."""
    addresses = UNDERLAY[outer]
    with ExitStack() as stack:
        hosts = [stack.enter_context(namespace()) for _ in addresses]
        join = [
            "ip",
            "link",
            "add",
            "w0",
            "netns",
            hosts[0],
            "type",
            "veth",
            "peer",
            "name",
            "w0",
            "netns",
            hosts[1],
        ]
        subprocess.run(join, check=True)
        for index, host in enumerate(hosts):
            subprocess.run(["ip", "-n", host, "link", "set", "w0", "up"], check=True)
            own = f"{addresses[index]}/{64 if ':' in addresses[index] else 24}"
            nodad = ["nodad"] if ":" in own else []
            subprocess.run(["ip", "-n", host, "address", "add", own, "dev", "w0", *nodad], check=True)
        for index, host in enumerate(hosts):
            far = addresses[1 - index]
            folder = scratch / host
            folder.mkdir()
            stack.enter_context(
                StaticFastpath(
                    host,
                    folder,
                    VNI,
                    (f"10.77.0.{index + 1}/24", f"fd77::{index + 1}/64"),
                    (f"10.77.0.{2 - index}/32", f"fd77::{2 - index}/128"),
                    f"[{far}]:6081" if ":" in far else f"{far}:6081",
                )
            )
        return captured(hosts[0], hosts[0], scratch)


def captured(host: str, pinger: str, scratch: Path) -> list[dict[str, Any]]:
    """Return what tshark decodes of the wire while a host pings."""
    file = scratch / "wire.pcap"
    capture = subprocess.Popen(
        ["ip", "netns", "exec", host, "tshark", "-q", "-i", "w0", "-w", str(file), "-f", "udp port 6081"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert capture.stderr is not None
    for line in capture.stderr:
        if "Capturing on" in line:
            break
    time.sleep(1)  # dumpcap says so a moment before it does
    for target in ("10.77.0.2", "fd77::2"):
        ping = ["ip", "netns", "exec", pinger, "ping", "-q", "-c", "2", "-i", "0.2", "-w", "10", target]
        subprocess.run(ping, check=True, capture_output=True)
    time.sleep(0.5)
    capture.terminate()
    capture.communicate(timeout=20)
    checks = ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    decoded = subprocess.run(
        ["tshark", "-r", str(file), "-T", "json", "--no-duplicate-keys", *checks],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [packet["_source"]["layers"] for packet in json.loads(decoded)]


@pytest.fixture(scope="module", params=UNDERLAY)
def packets(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]]]:
    return request.param, layers(request.param, tmp_path_factory.mktemp("capture"))


def test_every_packet_is_geneve(packets: tuple[str, list[dict[str, Any]]]) -> None:
    _, decoded = packets
    assert len(decoded) >= 8  # 2 pings x 2 families x (request and reply)
    assert all("geneve" in layer for layer in decoded)


def test_every_header_field_is_as_rfc_8926_has_it(packets: tuple[str, list[dict[str, Any]]]) -> None:
    outer, decoded = packets
    protocols = set()
    for layer in decoded:
        header = layer["geneve"]
        assert header["geneve.version"] == "0"
        assert int(header["geneve.vni"], 16) == VNI
        flags = header["geneve.flags_tree"]
        assert flags["geneve.flags.oam"] in ("0", False)
        assert flags["geneve.flags.critical"] in ("0", False)
        assert int(flags["geneve.flags.reserved"], 16) == 0
        assert "geneve.options" not in header
        protocols.add(int(header["geneve.proto_type"], 16))
        assert layer["udp"]["udp.dstport"] == "6081"
        assert outer in layer
    assert protocols == {0x0800, 0x86DD}


def test_the_inner_packets_decode_to_their_end(packets: tuple[str, list[dict[str, Any]]]) -> None:
    _, decoded = packets
    inner = {name for layer in decoded for name in layer}
    assert {"icmp", "icmpv6"} <= inner
    for layer in decoded:
        assert "_ws.malformed" not in layer
        if "icmp" in layer:
            assert layer["icmp"]["icmp.checksum.status"] == "1"


def test_the_underlay_checksum_is_good(packets: tuple[str, list[dict[str, Any]]]) -> None:
    # IPv6 forbids a zero UDP checksum but for tunnels that say so (RFC 8926 section 3.3); we send a full one.
    outer, decoded = packets
    if outer == "ipv6":
        assert all(layer["udp"]["udp.checksum"] != "0x0000" for layer in decoded)
