"""What a host's network interface shows to somebody who listens there: is it sealed?

python -m tests.netns.wire A B PATTERN     until SIGINT; then prints, as JSON, what passed between A and B

Reads every frame of eth0 (packet(7)) and looks at the IP packets between two underlay addresses.
"""

import json
import signal
import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

INTERFACE = "eth0"
SEALED_PORT = 51820
LISTENING = "listening"

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_ETHERNET, _IPV4, _IPV6 = 14, 0x0800, 0x86DD
_ICMP, _TCP, _UDP = 1, 6, 17
_PROTOCOLS = {_ICMP: "ICMP", _TCP: "TCP", _UDP: "UDP elsewhere"}
# A message's first four bytes: its type and three zeros (WireGuard paper, 5.4).
_MESSAGES = {1: "initiation", 2: "response", 3: "cookie", 4: "data"}
_PORT_UNREACHABLE = b"\x03\x03"  # type and code, RFC 792


@dataclass
class Seen:
    """What passed. messages: WireGuard's on its port; others: everything else, by protocol.

    Among the messages is also "refused": a host's word that nobody listens on that port yet.
    """

    messages: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    with_payload: int = 0

    def add(self, protocol: int, packet: bytes, payload: bytes) -> None:
        """Count one IP packet: what follows its IP header."""
        self.with_payload += payload in packet
        message = _message(protocol, packet)
        if message:
            self.messages[message] += 1
        else:
            self.others[_PROTOCOLS.get(protocol, f"protocol {protocol}")] += 1


def _message(protocol: int, packet: bytes) -> str | None:
    if protocol == _UDP and SEALED_PORT in struct.unpack_from("!HH", packet):
        return _MESSAGES.get(int.from_bytes(packet[8:12], "little"))
    if protocol == _ICMP and packet.startswith(_PORT_UNREACHABLE):
        quoted = packet[8 + 20 :]  # behind the headers of ICMP and of the IPv4 packet that it is about
        return "refused" if SEALED_PORT in struct.unpack_from("!HH", quoted) else None
    return None


def between(frame: bytes, hosts: set[bytes]) -> tuple[int, bytes] | None:
    """Return protocol and content of a frame's IP packet if it goes from one of two hosts to the other."""
    [kind] = struct.unpack_from("!H", frame, 12)
    packet = frame[_ETHERNET:]
    if kind == _IPV4 and {packet[12:16], packet[16:20]} == hosts:
        return packet[9], packet[(packet[0] & 0xF) * 4 :]
    if kind == _IPV6 and {packet[8:24], packet[24:40]} == hosts:
        return packet[6], packet[40:]
    return None


def main() -> None:
    """Listen until SIGINT, then tell."""
    hosts = {ip_address(text).packed for text in sys.argv[1:3]}
    payload, seen = sys.argv[3].encode(), Seen()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)) as listener:
        listener.bind((INTERFACE, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(LISTENING, file=sys.stderr, flush=True)
        try:
            while True:
                found = between(listener.recv(1 << 17), hosts)
                if found:
                    seen.add(*found, payload)
        except KeyboardInterrupt:
            print(json.dumps(vars(seen)))


if __name__ == "__main__":
    main()
