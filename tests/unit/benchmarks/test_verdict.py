from typing import Any

import pytest

from benchmarks import verdict
from benchmarks.verdict import GATES, Gate, NoMore

SPEED = Gate("ours", "theirs", "tcp1_gbps", must=1.8, goal=2.2)
LATENCY = Gate("ours", "theirs", "rtt_idle_us", must=0.6, goal=0.4, at_most=True)
RETRANSMITS = NoMore("ours", "theirs", "retransmits")


def rows(quantity: str, ours: float | None, theirs: float | None) -> dict[str, dict[str, Any]]:
    return {"ours": {quantity: ours}, "theirs": {quantity: theirs}}


@pytest.mark.parametrize(
    ("gate", "ours", "verdict"),
    [
        (SPEED, 2.2, "goal"),
        (SPEED, 2.1, "met"),
        (SPEED, 1.8, "met"),
        (SPEED, 1.79, "missed"),
        (SPEED, None, "not measured"),
        (LATENCY, 0.4, "goal"),
        (LATENCY, 0.6, "met"),
        (LATENCY, 0.61, "missed"),
        (RETRANSMITS, 1, "goal"),
        (RETRANSMITS, 2, "missed"),
        (RETRANSMITS, None, "not measured"),
    ],
)
def test_a_gate_is_judged(gate: Gate | NoMore, ours: float | None, verdict: str) -> None:
    assert gate.verdict(rows(gate.quantity, ours, 1)) == verdict


def test_nothing_is_compared_with_what_was_not_measured() -> None:
    assert SPEED.verdict({"ours": {"tcp1_gbps": 1}}) == "not measured"
    assert RETRANSMITS.verdict(rows("retransmits", 0, 0)) == "goal"


def test_a_line_per_gate_from_the_rows_of_the_gates_mode() -> None:
    measured: list[dict[str, Any]] = [
        {"name": verdict.CHACHA, "wire_mode": mode, "tcp1_gbps": gbps}
        for mode, gbps in (("nic", 4), ("soft", 9))
    ]
    measured.append({"name": verdict.WIREGUARD, "wire_mode": "nic", "tcp1_gbps": 2})
    lines = verdict.lines(measured)
    assert len(lines) == len(GATES)
    line = (verdict.CHACHA, verdict.WIREGUARD, "tcp1_gbps", "2.00", ">= 1.8 (goal 2.2)", "met")
    assert line in lines
    assert {line[-1] for line in lines} == {"met", "not measured"}
