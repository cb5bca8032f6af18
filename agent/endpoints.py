"""Where this host can be reached from outside: which of its addresses may be offered to others.

Offered are the global addresses of interfaces that lead out of the host. Never: loopback, overlays
and tunnels (a packet would go in circles), bridges and what hangs on them (containers and virtual
machines live there, under addresses that every other host has too). Where that leaves nothing, as on
a host whose uplink is a bridge, `endpoints` in the configuration says it.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address

from overmesh.agent.host import Link, LinkAddress, Underlay
from overmesh.errors import ConfigError
from overmesh.model import Address, Endpoint

LIMIT = 8

_BRIDGES = {"bridge", "openvswitch"}
_NOT_OFFERED = _BRIDGES | {
    "bareudp", "dummy", "erspan", "geneve", "gre", "gretap", "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl",
    "ipip", "sit", "tun", "vti", "vti6", "vxlan", "wireguard", "xfrm",
}  # fmt: skip
_FORMS = [
    re.compile(form)
    for form in (
        r"(?P<address>[^\[\]]+)",
        r"\[(?P<address>.+:.+)\](:(?P<port>\d{1,5}))?",
        r"(?P<address>[\d.]+):(?P<port>\d{1,5})",
    )
]
# Interfaces of container networks whose kind (veth, mostly) does not give them away.
_CONTAINER_NAMES = (
    "antrea",
    "cali",
    "cilium",
    "cni",
    "docker",
    "flannel",
    "kube",
    "lxc",
    "lxd",
    "ovn",
    "weave",
)


def candidates(underlay: Underlay, port: int, preferred: Iterable[Address] = ()) -> tuple[Endpoint, ...]:
    """Return the endpoints to offer, best first.

    Args:
        underlay: the host's interfaces and addresses.
        port: the UDP port the fastpath listens on; 0: not known yet (mesh.proto, JoinRequest).
        preferred: addresses that are known to lead out (the source of packets to a controller).

    """
    offered = [entry for entry in underlay.addresses if _may_offer(entry, underlay)]
    wanted = list(preferred)
    near = {entry.link for entry in offered if entry.address in wanted}

    def rank(entry: LinkAddress) -> tuple[bool, bool, bool, int, int]:
        # Secondary ones may be many, and what leaves the host has another source unless a route says so.
        unlikely = entry.address not in wanted, entry.secondary, entry.link not in near
        return *unlikely, entry.link, entry.address.version

    return tuple(Endpoint(entry.address, port) for entry in sorted(offered, key=rank)[:LIMIT])


def configured(texts: Iterable[str], port: int) -> tuple[Endpoint, ...]:
    """Return the endpoints that the configuration names: "address", "address:port" or "[v6]:port".

    Args:
        texts: what it says.
        port: where it names none, as for `candidates`.

    Raises:
        ConfigError: not one of these.

    """
    return tuple(_endpoint(text, port) for text in texts)


def _endpoint(text: str, port: int) -> Endpoint:
    for form in _FORMS:
        found = form.fullmatch(text)
        said = found.groupdict().get("port") if found else None
        if found and (said is None or 0 < int(said) < 1 << 16):
            with suppress(ValueError):
                return Endpoint(ip_address(found["address"]), int(said or port))
    raise ConfigError(
        f"endpoint {text!r} is not an address", "write 192.0.2.7, 192.0.2.7:51820 or [2001:db8::7]:51820"
    )


def _may_offer(entry: LinkAddress, underlay: Underlay) -> bool:
    by_index = {link.index: link for link in underlay.links}
    link = by_index.get(entry.link)
    if link is None or not entry.usable or not _leads_out(link, by_index.get(link.master)):
        return False
    address = entry.address
    return not (
        address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified
    )


def _leads_out(link: Link, master: Link | None) -> bool:
    if link.loopback or not link.up or link.kind in _NOT_OFFERED:
        return False
    if master is not None and master.kind in _BRIDGES:
        return False
    return not link.name.startswith(_CONTAINER_NAMES)
