"""What has to be done so that this host matches its map. Pure: values in, operations out.

    Desired (desired.py) + Observed --plan--> operations, in order, and what must not be done

What is missing is added before what is too much is deleted, so that a change never interrupts what
stays. A plan for a host that is as desired is empty.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from overmesh.agent.desired import Desired
from overmesh.agent.host import ROUTE_PROTOCOL, Link, LinkAddress, Route, Underlay
from overmesh.errors import HostError, RangeCollisionError
from overmesh.model import Address, FastpathState, Problem, Range


@dataclass(frozen=True, slots=True)
class Observed:
    """How it is.

    link: the overlay interface; addresses: those on it. routes: at least those out of it; all of the
    host's when one of ours is missing, so that the plan can see what is in the way.
    fastpath: what the running fastpath was given; None when it runs with something else or not at all.
    """

    link: Link | None = None
    addresses: tuple[LinkAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    fastpath: FastpathState | None = None


@dataclass(frozen=True, slots=True)
class CreateTun:
    """Make the interface."""

    name: str

    def __str__(self) -> str:
        return f"interface {self.name}"


@dataclass(frozen=True, slots=True)
class SetLink:
    """Bring the interface up with an MTU."""

    mtu: int

    def __str__(self) -> str:
        return f"mtu {self.mtu}, up"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Add an address of ours."""

    address: Address

    def __str__(self) -> str:
        return f"address {self.address}"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Remove an address that is not ours any more."""

    entry: LinkAddress

    def __str__(self) -> str:
        return f"remove address {self.entry.address}"


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Add a route; replace: the prefix has one of ours, with another source."""

    prefix: Range
    source: Address | None
    replace: bool = False

    def __str__(self) -> str:
        return f"route {self.prefix}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours."""

    route: Route

    def __str__(self) -> str:
        return f"remove route {self.route.prefix}"


@dataclass(frozen=True, slots=True)
class ApplyFastpath:
    """Give the fastpath its whole state."""

    state: FastpathState

    def __str__(self) -> str:
        return "fastpath"


Operation = CreateTun | SetLink | AddAddress | RemoveAddress | SetRoute | RemoveRoute | ApplyFastpath


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations in the order in which they must happen; problems: what can't be done, by name."""

    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]


# What is in the way of it.


def collision(prefix: Range, routes: Iterable[Route], underlay: Underlay, overlay: str) -> Problem | None:
    """Return what of the host's routes overlaps a prefix of the overlay.

    Default routes (also halved ones, as VPN clients set them) and our own interface's do not count.
    """
    names = {link.index: link.name for link in underlay.links}
    for route in routes:
        if route.prefix.prefixlen <= 1 or names.get(route.link) == overlay:
            continue
        if route.prefix.version == prefix.version and route.prefix.overlaps(prefix):
            where = names.get(route.link, "several interfaces")
            return Problem(f"route {prefix}", f"overlaps {route.prefix} on {where}")
    return None


def refuse_collisions(
    ranges: Iterable[Range], routes: Iterable[Route], underlay: Underlay, overlay: str
) -> None:
    """Raise RangeCollisionError when a range of the overlay overlaps a route that the host has."""
    known = tuple(routes)
    for cidr in ranges:
        found = collision(cidr, known, underlay, overlay)
        if found:
            raise RangeCollisionError(
                f"the overlay's range {cidr} {found.reason}",
                "remove that route, or join a network with another range (meshctl network create --range)",
            )


# What to do.


def plan(desired: Desired, observed: Observed, underlay: Underlay) -> Plan:
    """Return what leads from observed to desired.

    Raises:
        HostError: the interface's name belongs to something else.

    """
    _refuse_foreign(desired, observed)
    link = observed.link
    routes, problems = _missing_routes(desired, observed, underlay)
    operations: list[Operation] = []
    if link is None:
        operations.append(CreateTun(desired.interface))
    if link is None or link.mtu != desired.mtu or not link.up:
        operations.append(SetLink(desired.mtu))
    held = {entry.address for entry in observed.addresses}
    operations += [AddAddress(address) for address in desired.addresses if address not in held]
    if observed.fastpath != desired.fastpath:
        operations.append(ApplyFastpath(desired.fastpath))
    return Plan((*operations, *routes, *_surplus(desired, observed)), tuple(problems))


def _refuse_foreign(desired: Desired, observed: Observed) -> None:
    link = observed.link
    if link is None:
        return
    ranges = [prefix for prefix, _ in desired.routes]
    foreign = [
        entry.address for entry in _global(observed) if not any(entry.address in cidr for cidr in ranges)
    ]
    if link.kind == "tun" and (not foreign or any(_ours(observed))):
        return
    what = (
        f"it has address {foreign[0]}" if foreign else f"it is {link.kind or 'hardware'}, not a TUN interface"
    )
    raise HostError(
        f"interface {desired.interface} exists and is not ours: {what}",
        "name another one: interface in agent.toml, or --interface",
    )


def _missing_routes(
    desired: Desired, observed: Observed, underlay: Underlay
) -> tuple[list[SetRoute], list[Problem]]:
    ours = {route.prefix: route for route in _ours(observed)}
    operations, problems = [], []
    for prefix, source in desired.routes:
        route = ours.get(prefix)
        if route is not None and route.source == source:
            continue
        found = collision(prefix, observed.routes, underlay, desired.interface)
        if found:
            problems.append(found)
        else:
            operations.append(SetRoute(prefix, source, replace=route is not None))
    return operations, problems


def _surplus(desired: Desired, observed: Observed) -> Iterator[Operation]:
    prefixes = {prefix for prefix, _ in desired.routes}
    yield from (RemoveRoute(route) for route in _ours(observed) if route.prefix not in prefixes)
    yield from (RemoveAddress(entry) for entry in _global(observed) if entry.address not in desired.addresses)


def _global(observed: Observed) -> Iterator[LinkAddress]:
    """Yield the addresses of the interface but those that the kernel gives by itself."""
    return (entry for entry in observed.addresses if not entry.address.is_link_local)


def _ours(observed: Observed) -> Iterator[Route]:
    for route in observed.routes:
        if observed.link and route.link == observed.link.index and route.protocol == ROUTE_PROTOCOL:
            yield route


def missing(desired: Desired, observed: Observed) -> bool:
    """Tell whether a route of ours is missing: then the plan needs to see all routes of the host."""
    ours = {(route.prefix, route.source) for route in _ours(observed)}
    return any(route not in ours for route in desired.routes)
