"""Where other hosts can reach this one, for when nobody said so in `advertise`."""

import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from overmesh.model import Address, Range

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_IFREQ = struct.Struct("16s H 2x 4s 16x")  # struct ifreq with a sockaddr_in
# Any address that is routed the default way will do; nothing is sent to it (RFC 5737, RFC 3849).
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def own_addresses(overlays: Iterable[Range]) -> list[Address]:
    """Return this host's addresses, the one on the way to everywhere first.

    Args:
        overlays: ranges whose addresses do not count: an overlay can't carry its own joining.

    """
    overlays = list(overlays)
    candidates = dict.fromkeys((*_on_default_route(), *_ipv4(), *_ipv6()))
    return [
        address
        for address in candidates
        if not address.is_loopback
        and not address.is_link_local
        and not any(address in cidr for cidr in overlays)
    ]


def _on_default_route() -> Iterator[Address]:
    for family, elsewhere in _ELSEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            text = probe.getsockname()[0]
            yield IPv4Address(text) if family == socket.AF_INET else IPv6Address(text)


def _ipv4() -> Iterator[Address]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = _IFREQ.pack(name.encode(), socket.AF_INET, bytes(4))
            with suppress(OSError):  # an interface without an IPv4 address
                reply = fcntl.ioctl(sock, _SIOCGIFADDR, request)
                yield IPv4Address(_IFREQ.unpack(reply)[2])


def _ipv6() -> Iterator[Address]:
    with suppress(OSError):  # a host without IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            yield IPv6Address(bytes.fromhex(line.split()[0]))
