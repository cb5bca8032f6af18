"""Which members may be used together: each verified for itself, they can contradict each other. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from math import inf

from overmesh.model import Network, Node, Range, node_key


@dataclass(frozen=True, slots=True)
class Members:
    """Which of these nodes can be used in a network, by id, and why others can't: between two moments."""

    nodes: tuple[Node, ...]
    network: Network
    me: Node
    usable: tuple[Node, ...]
    unusable: Mapping[str, str]
    since: float
    until: float


def members(nodes: tuple[Node, ...], network: Network, my_id: str, now: float) -> Members:
    """Return which nodes can be used at `now` (unix seconds).

    An address or route belongs to one node: this host first, then whoever's record has the higher
    serial, because that one was issued later.
    """
    others = {node.id: node for node in nodes}
    me = others.pop(my_id)
    owners = dict.fromkeys(_claims(me), me)
    usable, unusable = [], {}
    for node in sorted(others.values(), key=lambda node: (-node.serial, node.id)):
        claims = tuple(_claims(node))
        reason = _unusable(node, network, claims, owners, now)
        if reason:
            unusable[node_key(node.id)] = reason
        else:
            owners |= dict.fromkeys(claims, node)
            usable.append(node)
    until = min((node.not_after for node in usable), default=inf)
    return Members(nodes, network, me, tuple(sorted(usable, key=lambda node: node.id)), unusable, now, until)


def _unusable(
    node: Node, network: Network, claims: Iterable[Range], owners: Mapping[Range, Node], now: float
) -> str:
    """Return why a verified node must not be used now, or an empty string."""
    if node.not_after < now:
        return "expired"
    for address in node.addresses:
        if not any(address in cidr for cidr in network.ranges):
            return f"address {address} is outside the ranges of network {network.name}"
    for claim in claims:
        if claim in owners:
            return f"claims {claim}, which belongs to {owners[claim].name}"
    return ""


def _claims(node: Node) -> Iterator[Range]:
    """Yield every prefix that a node wants to receive."""
    yield from (ip_network(address) for address in node.addresses)
    yield from node.routes
