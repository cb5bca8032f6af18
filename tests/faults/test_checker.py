"""The checker finds what was planted in a history that is good without it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.checker import HEALED, LIMIT, convergence, violations
from tests.faults.history import OK, REFUSED, UNKNOWN, Call, Held, History, Mark, Recorder

A, B = ("10.0.0.1",), ("10.0.0.2",)
THERE, ELSEWHERE = ("192.0.2.1:1",), ("192.0.2.1:2",)


def call(number: int, what: str, began: float, ended: float, **said: object) -> Call:
    return Call(number, "client", what, began, said, ended, OK, "c1")


def good() -> History:
    """Two nodes join, one says where it is, the other is removed; both agents see it."""
    return History(
        calls=[
            call(1, "token", 0, 1, token="t", uses=2),
            call(2, "join", 1, 2, node="a", token="t", addresses=list(A), revision=10),
            call(3, "join", 1, 3, node="b", token="t", addresses=list(B), revision=11),
            call(4, "report", 4, 5, node="a", places=list(THERE), revision=12),
            call(5, "remove", 6, 7, node="b", revision=13),
            call(6, "look", 8, 9, node="b", found=False),
            call(7, "report", 10, 11, node="a", places=list(ELSEWHERE), revision=14),
        ],
        maps=[
            Held(3.1, "x", 10, "d10", {"a": A}),
            Held(3.2, "y", 11, "d11", {"a": A, "b": B}),
            Held(5.1, "x", 12, "d12", {"b": B}, {"a": THERE}),
            Held(7.1, "x", 13, "d13", gone=("b",)),
            Held(11.1, "y", 14, "d14", {}, {"a": ELSEWHERE}, ("b",)),
            Held(12.5, "x", 14, "d14", {}, {"a": ELSEWHERE}),
        ],
        marks=[Mark(12, HEALED)],
    )


def test_a_good_history_has_nothing_in_it_that_must_not_be() -> None:
    assert violations(good()) == []
    assert convergence(good()) == 0.5


def address_twice(history: History) -> None:
    history.calls[2].said["addresses"] = list(A)


def address_twice_in_a_map(history: History) -> None:
    history.maps[2] = replace(history.maps[2], joined={"b": A})


def token_twice(history: History) -> None:
    history.calls[0].said["uses"] = 1


def token_unknown(history: History) -> None:
    history.calls[2].outcome, history.calls[2].error = REFUSED, "TokenError: this mesh has no token 't'"


def back(history: History) -> None:
    history.maps[2] = replace(history.maps[2], revision=9)


def two_stories(history: History) -> None:
    history.maps[5] = replace(history.maps[5], digest="other")


def join_lost(history: History) -> None:
    history.maps[1] = replace(history.maps[1], joined={"b": B})


def join_lost_in_the_end(history: History) -> None:
    history.maps[5] = replace(history.maps[5], gone=("a",))


def refused_in_the_end(history: History) -> None:
    history.maps[5] = replace(history.maps[5], refused={"node/a": "an old serial"})


def report_lost(history: History) -> None:
    history.maps[2] = replace(history.maps[2], moved={})


def report_overwritten(history: History) -> None:
    history.maps[5] = replace(history.maps[5], moved={"a": THERE})


def still_there(history: History) -> None:
    history.maps[3] = replace(history.maps[3], gone=())


def still_there_in_the_end(history: History) -> None:
    history.maps[4] = replace(history.maps[4], gone=())
    history.calls[4].said["revision"] = 0


def still_known(history: History) -> None:
    history.calls[5].said["found"] = True


def surprised(history: History) -> None:
    history.calls[5].outcome, history.calls[5].error = UNKNOWN, "unexpected error; see the log"


def late(history: History) -> None:
    history.maps[5] = replace(history.maps[5], at=12 + LIMIT + 1)


def never(history: History) -> None:
    del history.maps[5]


def apart_again(history: History) -> None:
    history.maps.append(Held(13.0, "y", 15, "d15"))


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (address_twice, "one_holder"),
        (address_twice_in_a_map, "one_holder"),
        (token_twice, "tokens"),
        (token_unknown, "tokens"),
        (back, "forward"),
        (two_stories, "one_story"),
        (join_lost, "kept"),
        (join_lost_in_the_end, "kept"),
        (refused_in_the_end, "kept"),
        (report_lost, "kept"),
        (report_overwritten, "kept"),
        (still_there, "gone"),
        (still_there_in_the_end, "gone"),
        (still_known, "reads"),
        (surprised, "words"),
        (late, "converged"),
        (never, "converged"),
        (apart_again, "converged"),
    ],
)
def test_what_is_planted_is_found(plant: Callable[[History], None], rule: str) -> None:
    history = good()
    plant(history)
    found = violations(history)
    assert rule in {violation.rule for violation in found}
    assert all(violation.proof and str(violation) for violation in found)


def test_a_change_that_is_answered_after_the_last_fault_has_its_own_time() -> None:
    history = good()
    history.calls[6].ended = 12 + LIMIT
    history.maps[5] = replace(history.maps[5], at=12 + LIMIT + 0.25)
    assert convergence(history) == 0.25
    assert violations(history) == []


def test_what_may_have_happened_is_no_violation() -> None:
    history = good()
    history.calls[4].outcome = UNKNOWN  # removed, and nobody confirmed it
    history.calls[6].outcome = UNKNOWN  # moved, likewise
    assert violations(history) == []
    history.maps[4] = replace(history.maps[4], moved={"a": THERE})
    history.maps[5] = replace(history.maps[5], moved={})
    assert violations(history) == []


def test_a_refused_removal_excuses_nothing() -> None:
    history = good()
    history.calls[4].outcome = REFUSED
    assert {found.rule for found in violations(history)} == {"kept"}


def test_an_address_goes_from_one_to_the_next() -> None:
    history = good()
    again = call(8, "join", 8, 9, node="c", token="t2", addresses=list(B), revision=14)
    history.calls.append(again)
    history.maps[4] = replace(history.maps[4], joined={"c": B})
    history.maps[5] = replace(history.maps[5], joined={"c": B})
    assert violations(history) == []
    again.began, again.ended = 4, 5  # before anybody wanted the other one gone
    assert {found.rule for found in violations(history)} == {"one_holder"}


def test_a_node_that_came_back_may_be_there() -> None:
    history = good()
    history.calls.insert(6, call(8, "join", 8, 9, node="b", token="t", addresses=list(B), revision=14))
    history.maps[4] = replace(history.maps[4], gone=())
    history.maps[5] = replace(history.maps[5], joined={"b": B})
    assert violations(history) == []


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    with Recorder.open(file) as recorder:
        with recorder.call("guest", "join", node="a") as asked:
            asked.outcome, asked.controller = OK, "c2"
            asked.said["addresses"] = list(A)
        held = Held(1.5, "x", 7, "d", {"a": A}, {"a": THERE}, ("b",), {"node/c": "why"})
        recorder.held(held)
        recorder.mark("c1 killed")
    with file.open("a") as torn:
        torn.write(json.dumps(["mark", {}])[:-3])
    history = History.read(file)
    assert (history.calls, history.maps, [mark.what for mark in history.marks]) == (
        [asked],
        [held],
        ["c1 killed"],
    )
