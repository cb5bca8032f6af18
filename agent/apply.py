"""Carries a plan out on the host and in the fastpath, and tells what is true then."""

import logging
from dataclasses import dataclass, replace

from overmesh.agent.desired import Desired
from overmesh.agent.fastpath import Fastpath
from overmesh.agent.host import Link, Route, Underlay
from overmesh.agent.netlink import Netlink
from overmesh.agent.plan import (
    AddAddress,
    ApplyFastpath,
    CreateTun,
    Observed,
    Operation,
    RemoveAddress,
    RemoveRoute,
    SetLink,
    SetRoute,
    missing,
    plan,
)
from overmesh.errors import HostError, OvermeshError
from overmesh.model import Problem

log = logging.getLogger("overmesh.agent.apply")


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, and what could not be."""

    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]


async def reconcile(desired: Desired, underlay: Underlay, netlink: Netlink, fastpath: Fastpath) -> Applied:
    """Make the host match. Doing it again does nothing; one thing that fails does not stop the others.

    Raises:
        HostError: the interface's name belongs to something else, or the host can't be looked at.

    """
    steps = plan(desired, await observe(desired, underlay, netlink, fastpath), underlay)
    problems = list(steps.problems)
    done = []
    for operation in steps.operations:
        try:
            if await _carry_out(operation, desired.interface, netlink, fastpath):
                done.append(operation)
        except OvermeshError as error:
            problems.append(Problem(str(operation), error.cause))
    if done:
        log.info("host changed", extra={"done": ", ".join(map(str, done))})
    return Applied(tuple(done), tuple(problems))


async def observe(desired: Desired, underlay: Underlay, netlink: Netlink, fastpath: Fastpath) -> Observed:
    """Return how the host is, as far as a plan needs it."""
    link = underlay.link(desired.interface)
    observed = Observed(
        link=link,
        addresses=tuple(entry for entry in underlay.addresses if link and entry.link == link.index),
        routes=await netlink.routes(link.index) if link else (),
        fastpath=await fastpath.applied(),
    )
    return replace(observed, routes=await netlink.routes()) if missing(desired, observed) else observed


async def _carry_out(operation: Operation, interface: str, netlink: Netlink, fastpath: Fastpath) -> bool:
    """Do one thing; return whether it could be done already."""
    match operation:
        case ApplyFastpath(state):
            if not fastpath.running and not fastpath.error:
                return False  # it is being started, and calls for this again when it is up
            await fastpath.apply(state)
        case CreateTun(name):
            netlink.create_tun(name)
        case _:
            await _change_link(operation, await _link(interface, netlink), netlink)
    return True


async def _change_link(
    operation: SetLink | AddAddress | RemoveAddress | SetRoute | RemoveRoute, link: Link, netlink: Netlink
) -> None:
    match operation:
        case SetLink(mtu):
            await netlink.set_link_up(link.index, mtu)
        case AddAddress(address):
            await netlink.add_address(link.index, address)
        case RemoveAddress(entry):
            await netlink.remove_address(entry)
        case SetRoute(prefix, source, replace=instead):
            await netlink.set_route(Route(prefix, link.index, source), replace=instead)
        case RemoveRoute(route):
            await netlink.remove_route(route)


async def _link(name: str, netlink: Netlink) -> Link:
    link = await netlink.link(name)
    if link is None:
        raise HostError(f"interface {name} does not exist", "it is made again at the next check")
    return link
