"""Echo requests to a host, as `ping` sends them (RFC 792, RFC 4443): for `meshctl ping ADDRESS`."""

import asyncio
import os
import socket
import struct
import time

from overmesh.errors import HostError
from overmesh.model import Address

_HEADER = struct.Struct("!BBHHH")
_IPV4_REQUEST, _IPV4_REPLY = 8, 0
_IPV6_REQUEST, _IPV6_REPLY = 128, 129


async def echo(address: Address, source: Address, timeout: float) -> float | None:
    """Return the round-trip time to an address in seconds, None when nothing came back in time.

    Args:
        address: whom to ask.
        source: our address to ask from.
        timeout: seconds.

    Raises:
        HostError: the packet can't be sent.

    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if address.version == 4 else socket.IPPROTO_ICMPV6
    try:
        with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
            raw.setblocking(False)
            raw.bind((str(source), 0))
            raw.connect((str(address), 0))
            async with asyncio.timeout(timeout):
                return await _round_trip(raw, address.version)
    except TimeoutError:
        return None
    except OSError as error:
        raise HostError(f"no echo request to {address} can be sent: {error.strerror}") from None


async def _round_trip(raw: socket.socket, version: int) -> float:
    loop = asyncio.get_running_loop()
    mark = os.urandom(4)
    request = _request(version, mark)
    began = time.perf_counter()
    await loop.sock_sendall(raw, request)
    while not _is_reply(await loop.sock_recv(raw, 2048), version, mark):
        pass
    return time.perf_counter() - began


def _request(version: int, mark: bytes) -> bytes:
    kind = _IPV4_REQUEST if version == 4 else _IPV6_REQUEST
    identifier, sequence = struct.unpack("!HH", mark)
    # For IPv6 the kernel fills the checksum in (RFC 3542 section 3.1).
    checksum = _checksum(_HEADER.pack(kind, 0, 0, identifier, sequence)) if version == 4 else 0
    return _HEADER.pack(kind, 0, checksum, identifier, sequence)


def _is_reply(packet: bytes, version: int, mark: bytes) -> bool:
    # Raw IPv4 sockets give the IP header too, IPv6 ones do not.
    message = packet[(packet[0] & 0xF) * 4 :] if version == 4 and packet else packet
    kind = _IPV4_REPLY if version == 4 else _IPV6_REPLY
    return len(message) >= _HEADER.size and message[0] == kind and message[4:8] == mark


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
