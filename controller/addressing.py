"""Which overlay addresses a node gets. Pure: a choice from what is free; the store makes it final.

A node's addresses follow from its id as far as they are free, so that a node that was removed and
comes back usually gets its old ones.
"""

import hashlib
from collections.abc import Container, Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from overmesh.errors import PoolExhaustedError
from overmesh.model import Address, Network, Range

_REHASHES = 64


def choose(network: Network, node_id: str, taken: Container[str]) -> tuple[Address, ...]:
    """Return one free address of each of the network's ranges.

    Args:
        network: with at most one range of each family.
        node_id: whose they are to be.
        taken: addresses that others have, as text.

    Raises:
        PoolExhaustedError: names the range without a free address.

    """
    return tuple(_free(network.name, cidr, node_id, taken) for cidr in network.ranges)


def _free(network_name: str, cidr: Range, node_id: str, taken: Container[str]) -> Address:
    candidates = _ipv4(cidr, node_id) if isinstance(cidr, IPv4Network) else _ipv6(cidr, node_id)
    for candidate in candidates:
        if str(candidate) not in taken:
            return candidate
    raise PoolExhaustedError(
        f"network {network_name} has no free address left in {cidr}",
        "remove nodes that are gone (`meshctl node remove`), or create a network with a larger range",
    )


def _ipv4(cidr: IPv4Network, node_id: str) -> Iterator[Address]:
    """Yield every host address once, from the node's own place on."""
    hosts = cidr.num_addresses - 2  # neither the network's nor the broadcast address
    start = _hash(node_id) % hosts
    for step in range(hosts):
        yield cidr[1 + (start + step) % hosts]


def _ipv6(cidr: IPv6Network, node_id: str) -> Iterator[Address]:
    """Yield 64-bit interface identifiers; after so many clashes the range is as good as full."""
    prefix = int(cidr.network_address)
    for attempt in range(_REHASHES):
        # The zero identifier is the subnet-router anycast address (RFC 4291, 2.6.1).
        yield IPv6Address(prefix | max(1, _hash(f"{node_id}/{attempt}")))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
