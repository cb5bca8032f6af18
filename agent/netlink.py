"""The host's network, read and changed through rtnetlink. The only import of pyroute2."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address, ip_network
from typing import Any, Self

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from overmesh.agent.host import Link, LinkAddress, Route, Underlay
from overmesh.errors import HostError, PermissionMissingError, TunMissingError
from overmesh.model import Address, Range

TUN_DEVICE = "/dev/net/tun"

# linux/if_tun.h. Attaching to an interface that exists needs the flags it was made with.
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("16sH22x")

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_TEMPORARY, _IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = (
    0x1,
    0x2,
    0x8,
    0x20,
    0x40,
)
# The same bit means another thing for each family.
_IFA_F_SECONDARY = _IFA_F_TEMPORARY
_PASSING = {
    4: _IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE,
    6: _IFA_F_TEMPORARY | _IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE,
}
_RTN_UNICAST = 1
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

_RouteSocket: Any = AsyncIPRoute  # untyped

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Netlink:
    """An rtnetlink socket. Every method raises HostError, in words, when the kernel refuses."""

    def __init__(self, route: Any) -> None:
        self._route = route

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Open the socket for the duration of a `with`."""
        async with _RouteSocket(strict_check=True) as route:
            yield cls(route)

    # Read.

    async def underlay(self) -> Underlay:
        """Return all interfaces and addresses."""
        with _explained("the interfaces can't be read"):
            links = [_link(message) async for message in await self._route.get_links()]
            addresses = [_address(message) async for message in await self._route.get_addr()]
        return Underlay(tuple(links), tuple(entry for entry in addresses if entry is not None))

    async def link(self, name: str) -> Link | None:
        """Return an interface by name, None when there is none."""
        with _explained(f"{name} can't be read", errno.ENODEV):
            for message in await self._route.link("get", ifname=name):
                return _link(message)
        return None

    async def routes(self, link: int = 0) -> tuple[Route, ...]:
        """Return the unicast routes out of one interface, or (0) all of the host's."""
        match = {"oif": link, "table": _RT_TABLE_MAIN} if link else {}
        found = []
        with _explained("the routes can't be read"):
            for family in _FAMILIES:
                found += [
                    _route(message) async for message in await self._route.get_routes(family=family, **match)
                ]
        return tuple(route for route in found if route is not None)

    async def source_toward(self, destination: Address) -> Address | None:
        """Return the address from which packets to the destination leave, None when there is no route."""
        try:
            for message in await self._route.route("get", dst=str(destination)):
                source = message.get("prefsrc")
                return ip_address(source) if source else None
        except NetlinkError:
            pass
        return None

    # Change. Each does nothing when it is so already.

    def create_tun(self, name: str) -> None:
        """Make a TUN interface that stays when nobody has it open, so that addresses and routes stay too.

        It takes a queue for every lane of the fastpath, however many there will be.

        Raises:
            TunMissingError: the host has no TUN device.
            PermissionMissingError: CAP_NET_ADMIN is missing.

        """
        with open_tun(name) as descriptor:
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)

    async def delete_tun(self, name: str) -> None:
        """Remove a TUN interface, and with it its addresses and routes; one of another kind is let be."""
        link = await self.link(name)
        if link is not None and link.kind == "tun":
            with _explained(f"{name} can't be removed", errno.ENODEV):
                await self._route.link("del", index=link.index)

    async def set_link_up(self, link: int, mtu: int) -> None:
        """Set an interface's MTU and bring it up."""
        with _explained(f"the interface can't be set up with MTU {mtu}"):
            await self._route.link("set", index=link, mtu=mtu, state="up")

    async def add_address(self, link: int, address: Address) -> None:
        """Add a host address (/32 or /128). IPv6 without duplicate detection: allocation excluded it."""
        with _explained(f"{address} can't be added", errno.EEXIST):
            await self._route.addr(
                "add",
                index=link,
                address=str(address),
                prefixlen=address.max_prefixlen,
                **({"flags": _IFA_F_NODAD} if address.version == 6 else {}),
            )

    async def remove_address(self, entry: LinkAddress) -> None:
        """Remove an address."""
        with _explained(f"{entry.address} can't be removed", errno.EADDRNOTAVAIL, errno.ENODEV):
            await self._route.addr(
                "del", index=entry.link, address=str(entry.address), prefixlen=entry.prefix_length
            )

    async def set_route(self, route: Route, *, replace: bool) -> None:
        """Add a route, or put it in the place of the one with the same prefix."""
        with _explained(f"route {route.prefix} can't be added"):
            await self._route.route("replace" if replace else "add", **_route_request(route))

    async def remove_route(self, route: Route) -> None:
        """Remove a route."""
        with _explained(f"route {route.prefix} can't be removed", errno.ESRCH, errno.ENODEV):
            await self._route.route("del", **_route_request(route))


@asynccontextmanager
async def changes() -> AsyncIterator[AsyncIterator[None]]:
    """Give an iterator that yields whenever an interface or an address of the host changes."""
    async with _RouteSocket() as route:
        await route.bind(groups=_RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR)

        async def each() -> AsyncIterator[None]:
            while True:
                with _explained("changes of the host can't be followed"):
                    async for _ in route.get():
                        yield

        yield each()


@contextmanager
def open_tun(name: str) -> Iterator[int]:
    """Give a descriptor of a TUN interface, which is made if need be and goes away with the descriptor.

    Args:
        name: may end in `%d`: the kernel takes a free number.

    Raises:
        TunMissingError: the host has no TUN device.
        PermissionMissingError: CAP_NET_ADMIN is missing.

    """
    descriptor = _open_tun_device()
    try:
        fcntl.ioctl(
            descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_MULTI_QUEUE)
        )
        yield descriptor
    except PermissionError:
        raise PermissionMissingError(
            f"interface {name} can't be made: CAP_NET_ADMIN is missing", "run as root"
        ) from None
    except OSError as error:
        raise HostError(f"interface {name} can't be made: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _open_tun_device() -> int:
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise PermissionMissingError(f"{TUN_DEVICE} can't be opened", "run as root") from None
    except OSError as error:
        raise TunMissingError(
            f"{TUN_DEVICE} is not usable: {error.strerror}",
            "load the module (`modprobe tun`), or give the container the device (`--device /dev/net/tun`)",
        ) from None


@contextmanager
def _explained(what: str, *harmless: int) -> Iterator[None]:
    """Translate what the kernel says; `harmless` codes mean that it was so already."""
    try:
        yield
    except NetlinkError as error:
        if error.code in harmless:
            return
        if error.code in (errno.EPERM, errno.EACCES):
            raise PermissionMissingError(f"{what}: {os.strerror(error.code)}", "run as root") from None
        raise HostError(f"{what}: {os.strerror(error.code)}") from None


def _link(message: Any) -> Link:
    info = message.get("linkinfo")
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        kind=(info.get("kind") or "") if info else "",
        mtu=message.get("mtu") or 0,
        up=bool(message["flags"] & _IFF_UP),
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        master=message.get("master") or 0,
    )


def _address(message: Any) -> LinkAddress | None:
    # On a point-to-point interface `address` is the other end, `local` ours.
    text = message.get("local") or message.get("address")
    if text is None:
        return None
    address = ip_address(text)
    flags = message.get("IFA_FLAGS") or message["flags"]
    return LinkAddress(
        message["index"],
        address,
        message["prefixlen"],
        usable=not flags & _PASSING[address.version],
        secondary=address.version == 4 and bool(flags & _IFA_F_SECONDARY),
    )


def _route(message: Any) -> Route | None:
    if message["type"] != _RTN_UNICAST or message.get("table") == _RT_TABLE_LOCAL:
        return None
    source = message.get("prefsrc")
    # A route over several interfaces has no `oif` of its own.
    link = message.get("oif") or 0
    return Route(_prefix(message), link, ip_address(source) if source else None, message["proto"])


def _prefix(message: Any) -> Range:
    anywhere = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104
    return ip_network(f"{message.get('dst') or anywhere}/{message['dst_len']}")


def _route_request(route: Route) -> dict[str, Any]:
    source = {"prefsrc": str(route.source)} if route.source else {}
    return {"dst": str(route.prefix), "oif": route.link, "proto": route.protocol, **source}
