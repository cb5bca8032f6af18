from collections import Counter

from overmesh.agent.controllers import LONGEST_SPREAD, better, in_order, spread, targets
from overmesh.model import Controller

A, B, C = (Controller(name, (f"{name}1:7443", f"{name}2:7443"), ()) for name in "abc")
NODES = [f"node{number}" for number in range(3000)]


def first_of(*controllers: Controller) -> dict[str, str]:
    return {node: in_order(node, controllers)[0].id for node in NODES}


def test_nodes_spread_evenly() -> None:
    counts = Counter(first_of(A, B, C).values())
    assert set(counts) == {"a", "b", "c"}
    assert all(850 < count < 1150 for count in counts.values()), counts


def test_only_those_of_a_controller_that_goes_move_and_they_spread_over_the_others() -> None:
    before, after = first_of(A, B, C), first_of(A, C)
    moved = [node for node in NODES if before[node] != after[node]]
    assert {before[node] for node in moved} == {"b"}
    counts = Counter(after[node] for node in moved)
    assert abs(counts["a"] - counts["c"]) < 0.2 * len(moved), counts


def test_the_order_in_which_the_map_names_them_does_not_matter() -> None:
    assert in_order("n", (A, B, C)) == in_order("n", (C, A, B))


def test_the_best_address_of_each_comes_first_then_second_ones_then_what_is_remembered() -> None:
    one, two = in_order("n", (A, B))
    assert targets("n", (A, B), ["old:7443", A.mesh[0]]) == (
        one.mesh[0],
        two.mesh[0],
        one.mesh[1],
        two.mesh[1],
        "old:7443",
    )


def test_what_is_remembered_stays_what_it_is() -> None:
    once = targets("n", (A, B, C), ["old:7443"])
    assert targets("n", (A, B, C), once) == once
    assert set(targets("n", (), once)) == set(once)


def test_there_is_a_better_one_unless_this_is_the_first() -> None:
    one, two = in_order("n", (A, B))
    assert better("n", (A, B), two.mesh[0]) == one
    assert better("n", (A, B), "elsewhere:7443") == one
    assert better("n", (A, B), one.mesh[1]) is None
    assert better("n", (), "elsewhere:7443") is None


def test_few_agents_come_back_at_once_many_over_half_a_minute() -> None:
    assert spread(3) < 0.1
    assert spread(10_000) == LONGEST_SPREAD
