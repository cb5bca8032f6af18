from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.agent.host import Link, LinkAddress, Route, Underlay
from overmesh.agent.plan import (
    AddAddress,
    ApplyFastpath,
    CreateTun,
    Observed,
    Operation,
    Plan,
    RemoveAddress,
    RemoveRoute,
    SetLink,
    SetRoute,
    missing,
    plan,
    refuse_collisions,
)
from overmesh.errors import HostError, RangeCollisionError
from overmesh.model import Peer
from tests.unit.agent.test_desired import ETH0, MAP, OM0, UNDERLAY, V4, desired
from tests.unit.agent.world import ME, NETWORK, node


def text(steps: Plan) -> list[str]:
    return [*map(str, steps.operations), *(f"! {one.subject}: {one.reason}" for one in steps.problems)]


def carried_out(operations: Iterable[Operation], observed: Observed) -> Observed:
    """Return the host after these operations: what apply.py and the kernel make of them."""
    for operation in operations:
        match operation:
            case CreateTun(name):
                observed = replace(observed, link=Link(9, name, "tun", mtu=1500, up=False))
            case SetLink(mtu):
                assert observed.link
                observed = replace(observed, link=replace(observed.link, mtu=mtu, up=True))
            case AddAddress(address):
                entry = LinkAddress(9, address, address.max_prefixlen)
                observed = replace(observed, addresses=(*observed.addresses, entry))
            case RemoveAddress(entry):
                left = tuple(one for one in observed.addresses if one != entry)
                observed = replace(observed, addresses=left)
            case SetRoute(prefix, source, replace=instead):
                ours = [one for one in observed.routes if one.link == 9 and one.prefix == prefix]
                assert bool(ours) == instead
                kept = tuple(one for one in observed.routes if one not in ours)
                observed = replace(observed, routes=(*kept, Route(prefix, 9, source)))
            case RemoveRoute(route):
                observed = replace(observed, routes=tuple(one for one in observed.routes if one != route))
            case ApplyFastpath(state):
                observed = replace(observed, fastpath=state)
    return observed


FRESH = Observed()
DONE = carried_out(plan(desired(), FRESH, UNDERLAY).operations, FRESH)


# What to do. Golden text.


def test_on_a_fresh_host() -> None:
    assert text(plan(desired(), FRESH, UNDERLAY)) == [
        "interface om0",
        "mtu 1420, up",
        "address 10.77.0.1",
        "address fd77::1",
        "fastpath",
        "route 10.77.0.0/16",
        "route fd77::/64",
    ]


def test_twice_the_same_does_nothing() -> None:
    assert text(plan(desired(), DONE, UNDERLAY)) == []
    assert not missing(desired(), DONE)


@pytest.mark.parametrize(
    ("drifted", "repair"),
    [
        (replace(DONE, link=replace(OM0, mtu=1500)), ["mtu 1420, up"]),
        (replace(DONE, link=replace(OM0, up=False)), ["mtu 1420, up"]),
        (replace(DONE, addresses=DONE.addresses[1:]), ["address 10.77.0.1"]),
        (replace(DONE, routes=DONE.routes[:1]), ["route fd77::/64"]),
        (replace(DONE, fastpath=None), ["fastpath"]),
        (
            replace(DONE, addresses=(*DONE.addresses, LinkAddress(9, ip_address("10.77.9.9"), 32))),
            ["remove address 10.77.9.9"],
        ),
        (
            replace(DONE, routes=(*DONE.routes, Route(ip_network("192.168.7.0/24"), 9))),
            ["remove route 192.168.7.0/24"],
        ),
    ],
)
def test_drift_is_repaired(drifted: Observed, repair: list[str]) -> None:
    assert text(plan(desired(), drifted, UNDERLAY)) == repair


def test_what_is_not_ours_is_left_alone() -> None:
    foreign = (
        Route(ip_network("192.168.7.0/24"), 2),
        Route(ip_network("10.77.0.0/24"), 9, protocol=4),
    )
    link_local = LinkAddress(9, ip_address("fe80::1"), 64)
    there = replace(DONE, routes=(*DONE.routes, *foreign), addresses=(*DONE.addresses, link_local))
    assert text(plan(desired(), there, UNDERLAY)) == []


def test_new_before_old_when_everything_moves() -> None:
    moved = replace(
        MAP,
        me=replace(ME, addresses=(ip_address("10.78.0.1"),)),
        network=replace(NETWORK, ranges=(ip_network("10.78.0.0/16"),)),
    )
    assert text(plan(desired(moved), DONE, UNDERLAY)) == [
        "address 10.78.0.1",
        "route 10.78.0.0/16",
        "remove route 10.77.0.0/16",
        "remove route fd77::/64",
        "remove address 10.77.0.1",
        "remove address fd77::1",
    ]


def test_a_route_with_another_source_is_replaced_in_one_go() -> None:
    moved = replace(MAP, me=replace(ME, addresses=(ip_address("10.77.0.9"), ip_address("fd77::1"))))
    [route] = [one for one in plan(desired(moved), DONE, UNDERLAY).operations if isinstance(one, SetRoute)]
    assert route == SetRoute(ip_network("10.77.0.0/16"), ip_address("10.77.0.9"), replace=True)


def test_subnets_behind_peers_get_routes() -> None:
    behind = replace(MAP, peers=(Peer(node(2, routes=(ip_network("192.168.7.0/24"),)), (V4,)),))
    assert text(plan(desired(behind), DONE, UNDERLAY)) == ["fastpath", "route 192.168.7.0/24"]


# What is in the way.


@pytest.mark.parametrize("in_the_way", ["10.77.5.0/24", "10.0.0.0/8", "10.77.0.0/16"])
def test_a_route_that_overlaps_is_named_and_ours_not_set(in_the_way: str) -> None:
    there = replace(DONE, routes=(DONE.routes[1], Route(ip_network(in_the_way), 2, protocol=3)))
    steps = plan(desired(), there, UNDERLAY)
    assert missing(desired(), there)
    assert text(steps) == [f"! route 10.77.0.0/16: overlaps {in_the_way} on eth0"]
    with pytest.raises(RangeCollisionError, match=f"overlaps {in_the_way} on eth0"):
        refuse_collisions(NETWORK.ranges, there.routes, UNDERLAY, "om0")


@pytest.mark.parametrize("harmless", ["0.0.0.0/0", "0.0.0.0/1", "::/0", "10.78.0.0/16", "192.0.2.0/24"])
def test_default_and_distant_routes_are_not_in_the_way(harmless: str) -> None:
    refuse_collisions(NETWORK.ranges, [Route(ip_network(harmless), 2)], UNDERLAY, "om0")


def test_our_own_routes_are_not_in_the_way() -> None:
    refuse_collisions(NETWORK.ranges, DONE.routes, Underlay((ETH0, OM0)), "om0")


@pytest.mark.parametrize(
    ("observed", "what"),
    [
        (Observed(link=Link(9, "om0", "wireguard")), "it is wireguard, not a TUN interface"),
        (Observed(link=Link(9, "om0")), "it is hardware, not a TUN interface"),
        (
            Observed(link=OM0, addresses=(LinkAddress(9, ip_address("10.8.0.1"), 24),)),
            "it has address 10.8.0.1",
        ),
    ],
)
def test_an_interface_that_is_not_ours_is_refused(observed: Observed, what: str) -> None:
    with pytest.raises(HostError, match=f"interface om0 exists and is not ours: {what}"):
        plan(desired(), observed, UNDERLAY)


def test_what_a_crash_left_is_taken_over() -> None:
    left = Observed(link=OM0, addresses=(LinkAddress(9, ip_address("10.77.0.1"), 32),))
    assert text(plan(desired(), left, UNDERLAY))[0] == "address fd77::1"


# Properties.

prefixes = st.sampled_from([ip_network(text) for text in ("10.77.0.0/16", "fd77::/64", "192.168.7.0/24")])
addresses = st.sampled_from([ip_address(text) for text in ("10.77.0.1", "10.77.0.9", "fd77::1", "fe80::5")])


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    """Return a host in any state that is ours to repair."""
    if draw(st.booleans()):
        return Observed()
    routes = draw(st.dictionaries(prefixes, st.one_of(st.none(), st.just(ip_address("10.77.0.9")))))
    held = draw(st.sets(addresses))
    return Observed(
        link=replace(OM0, mtu=draw(st.sampled_from([1420, 1500])), up=draw(st.booleans())),
        addresses=tuple(LinkAddress(9, address, address.max_prefixlen) for address in sorted(held, key=str)),
        routes=tuple(Route(prefix, 9, source) for prefix, source in routes.items()),
        fastpath=draw(st.sampled_from([None, desired().fastpath, replace(desired().fastpath, revision=4)])),
    )


@given(hosts())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(observed: Observed) -> None:
    after = carried_out(plan(desired(), observed, UNDERLAY).operations, observed)
    assert plan(desired(), after, UNDERLAY) == Plan((), ())
    assert not missing(desired(), after)


@given(hosts())
def test_nothing_that_stays_is_touched(observed: Observed) -> None:
    operations = plan(desired(), observed, UNDERLAY).operations
    wanted = set(desired().addresses)
    assert not [one for one in operations if isinstance(one, RemoveAddress) and one.entry.address in wanted]
    kinds = [isinstance(one, RemoveAddress | RemoveRoute) for one in operations]
    assert kinds == sorted(kinds), "add before delete"
