"""The gates: how much faster than its peers Overmesh must be, and how much it wants to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

WIREGUARD = "wireguard-go"
NEBULA = "nebula"
NEBULA_CHACHA = "nebula-chacha"
PLAIN, CHACHA, AES = OURS = "overmesh-plain", "overmesh-chacha", "overmesh-aes"
# The wire mode that the gates are measured in.
MODE = "nic"


@dataclass(frozen=True)
class Gate:
    """`name`'s ratio to `base` in `quantity` must be at least, or at most, so much."""

    name: str
    base: str
    quantity: str
    must: float
    goal: float
    at_most: bool = False

    def ratio(self, rows: Mapping[str, Row]) -> float | None:
        """Return the ratio of the medians; None if one of them was not measured."""
        ours, theirs = (rows.get(name, {}).get(self.quantity) for name in (self.name, self.base))
        return ours / theirs if ours is not None and theirs else None

    def verdict(self, rows: Mapping[str, Row]) -> str:
        """Return "goal", "met", "missed" or "not measured"."""
        ratio = self.ratio(rows)
        if ratio is None:
            return "not measured"
        for bound, verdict in ((self.goal, "goal"), (self.must, "met")):
            if ratio <= bound if self.at_most else ratio >= bound:
                return verdict
        return "missed"


@dataclass(frozen=True)
class NoMore:
    """`name` must have no more of `quantity` than `base`: a ratio to zero says nothing."""

    name: str
    base: str
    quantity: str

    def verdict(self, rows: Mapping[str, Row]) -> str:
        """Return "goal", "missed" or "not measured"."""
        ours, theirs = (rows.get(name, {}).get(self.quantity) for name in (self.name, self.base))
        if ours is None or theirs is None:
            return "not measured"
        return "goal" if ours <= theirs else "missed"


def _speed(name: str, must: float, goal: float) -> list[Gate]:
    return [Gate(name, WIREGUARD, quantity, must, goal) for quantity in ("tcp1_gbps", "gbit_per_cpu_s")]


GATES: tuple[Gate | NoMore, ...] = (
    *_speed(CHACHA, 1.8, 2.2),
    *_speed(AES, 2.2, 2.8),
    *_speed(PLAIN, 2.8, 3.5),
    *(Gate(name, WIREGUARD, "kpps_64", 4, 6) for name in OURS),
    *(Gate(name, WIREGUARD, "rtt_idle_us", 0.6, 0.4, at_most=True) for name in OURS),
    *(Gate(name, WIREGUARD, "rtt_load_us", 0.6, 0.25, at_most=True) for name in OURS),
    *(NoMore(name, WIREGUARD, "retransmits") for name in OURS),
    Gate(AES, NEBULA, "tcp1_gbps", 1.8, 1.8),
    Gate(CHACHA, NEBULA_CHACHA, "tcp1_gbps", 2, 2),
    Gate(AES, NEBULA, "kpps_64", 1, 1),
    Gate(CHACHA, NEBULA_CHACHA, "kpps_64", 1, 1),
)


def lines(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str, str]]:
    """Return a line per gate: who, against whom, what, found, asked, verdict."""
    by_name = {row["name"]: row for row in rows if row["wire_mode"] == MODE}
    return [
        (gate.name, gate.base, gate.quantity, _found(gate, by_name), _asked(gate), gate.verdict(by_name))
        for gate in GATES
    ]


def _found(gate: Gate | NoMore, rows: Mapping[str, Row]) -> str:
    if isinstance(gate, Gate):
        ratio = gate.ratio(rows)
        return "-" if ratio is None else f"{ratio:.2f}"
    ours, theirs = (rows.get(name, {}).get(gate.quantity) for name in (gate.name, gate.base))
    return "-" if ours is None or theirs is None else f"{ours:g} : {theirs:g}"


def _asked(gate: Gate | NoMore) -> str:
    if isinstance(gate, NoMore):
        return "no more"
    sign = "<=" if gate.at_most else ">="
    goal = f" (goal {gate.goal:g})" if gate.goal != gate.must else ""
    return f"{sign} {gate.must:g}{goal}"
