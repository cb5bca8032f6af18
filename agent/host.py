"""The host's network as values: what netlink.py reads and plan.py and endpoints.py reason about."""

from dataclasses import dataclass

from overmesh.model import Address, Range

# Tells our routes from everybody else's (rtm_protocol in linux/rtnetlink.h: values from 5 up are free
# for administrators; 77 is in nobody's rt_protos). `ip route show proto 77` lists them.
ROUTE_PROTOCOL = 77


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. kind: as `ip -d link` names it ("veth", "bridge", "tun"); empty for hardware."""

    index: int
    name: str
    kind: str = ""
    mtu: int = 1500
    up: bool = True
    loopback: bool = False
    master: int = 0


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on an interface. usable: neither tentative, failed, deprecated nor temporary.

    secondary: IPv4, and the interface had another one of this subnet before.
    """

    link: int
    address: Address
    prefix_length: int
    usable: bool = True
    secondary: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route, in any table but `local`."""

    prefix: Range
    link: int
    source: Address | None = None
    protocol: int = ROUTE_PROTOCOL


@dataclass(frozen=True, slots=True)
class Underlay:
    """All interfaces of the host and all their addresses."""

    links: tuple[Link, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()

    def link(self, name: str) -> Link | None:
        """Return the interface of that name, if there is one."""
        return next((link for link in self.links if link.name == name), None)

    def holder(self, address: Address) -> Link | None:
        """Return the interface that has the address, if one has."""
        index = next((entry.link for entry in self.addresses if entry.address == address), 0)
        return next((link for link in self.links if link.index == index), None)
