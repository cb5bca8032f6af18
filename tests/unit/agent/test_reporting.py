from dataclasses import replace
from ipaddress import ip_address

import pytest

from overmesh.agent.peermap import Replica
from overmesh.agent.reporting import Facts, Reporting
from overmesh.model import Endpoint, Problem, endpoints_key
from overmesh.proto import mesh_pb2
from tests.unit.agent.world import (
    SOON,
    Items,
    delta,
    endpoints,
    members,
    replica,
    revocation,
    signed,
    snapshot,
)

HERE = Facts(endpoints(1).endpoints, "tun", "", 1420, 1)
ELSEWHERE = replace(HERE, endpoints=(Endpoint(ip_address("192.0.2.66"), 6081),))


def holding(items: Items) -> Replica:
    held = replica()
    held.receive(*snapshot(10, items))
    return held


def due(reporting: Reporting) -> mesh_pb2.ReportRequest | None:
    return reporting.due("machine", "run", SOON)


def test_what_the_map_says_need_not_be_reported() -> None:
    reporting = Reporting(holding(members(2)))
    assert due(reporting) is None, "nothing is known yet"
    assert reporting.note(HERE)
    assert due(reporting) is None
    assert not reporting.note(HERE)


@pytest.mark.parametrize("facts", [ELSEWHERE, replace(HERE, lanes=2)])
def test_what_the_map_says_otherwise_is_told_each_controller_once(facts: Facts) -> None:
    reporting = Reporting(holding(members(2)))
    reporting.note(facts)
    request = due(reporting)
    assert request
    assert [one.address for one in request.endpoints] == [str(one.address) for one in facts.endpoints]
    assert (request.lanes, request.host_id, request.instance) == (facts.lanes, "machine", "run")
    assert due(reporting) is None
    reporting.begin()
    assert due(reporting) == request


def test_a_host_that_the_map_has_no_place_for_says_where_it_is() -> None:
    items = members(2)
    del items[endpoints_key("n1")]
    reporting = Reporting(holding(items))
    reporting.note(HERE)
    assert due(reporting)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(signed(endpoints(1, serial=11, port=99)), id="changed"),
        pytest.param({endpoints_key("n1"): b"forged"}, id="forged, though the last good one is still in use"),
    ],
)
def test_a_place_that_is_wrong_in_the_map_is_put_right(place: Items) -> None:
    before = members(2)
    held = holding(before)
    reporting = Reporting(held)
    reporting.note(HERE)
    assert due(reporting) is None
    held.receive(delta(10, before, 11, before | place))
    assert due(reporting)


def test_a_refusal_is_a_problem_until_the_host_is_where_the_map_says() -> None:
    reporting = Reporting(holding(members(2)))
    reporting.note(ELSEWHERE)
    assert due(reporting)
    reporting.answered("can't be")
    assert due(reporting) is None
    assert list(reporting.problems) == [Problem("report", "can't be")]
    reporting.note(HERE)
    assert due(reporting) is None
    assert not reporting.problems


def test_revocations_that_the_map_lacks_go_along_until_it_has_them() -> None:
    before = members(2) | signed(revocation(3))
    held = holding(before)
    reporting = Reporting(held)
    reporting.note(HERE)
    assert due(reporting) is None
    held.receive(delta(10, before, 11, members(2)))
    for _ in range(2):
        request = due(reporting)
        assert request
        assert [item.key for item in request.withheld] == ["revoked/n3"]


def test_health_is_left_out_while_it_is_not_known() -> None:
    reporting = Reporting(holding(members(2)))
    assert reporting.health is None
    reporting.note(HERE)
    assert reporting.health == mesh_pb2.Health(backend="tun", mtu=1420)
