"""Side by side: every contender is up, repetitions are interleaved, medians and ratios.

    python -m benchmarks.overlay [--modes nic,soft,cut,routed] [--repetitions 5] [--only NAME,NAME]

Absolute numbers of a small virtual machine mean little; the ratios between contenders that were
measured in one run do. Writes latest.json, latest.svg and machine.json in benchmarks/results; exits
with 1 if one of those that the gates compare could not be measured, whatever their speed.

With QUICK=1 in the environment: only those that the gates compare, only in wire mode nic.
"""

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import overmesh, peers, plot, verdict
from benchmarks.measure import QUANTITIES, measure, warm_up
from benchmarks.peers import Contender
from benchmarks.wire import MODES, ROUTED, Hosts, shape, wire

RESULTS = Path(__file__).parent / "results"
BASE = verdict.WIREGUARD

CONTENDERS: tuple[type[Contender], ...] = (
    peers.Link,
    peers.Vxlan,
    peers.WireguardGo,
    peers.Nebula,
    peers.NebulaChacha,
    peers.Boringtun,
    peers.Gotatun,
    peers.EasyTier,
    overmesh.OvermeshPlain,
    overmesh.OvermeshChacha,
    overmesh.OvermeshAes,
    overmesh.OvermeshPlainLanes,
    overmesh.OvermeshChachaLanes,
    overmesh.OvermeshAesLanes,
)

Row = dict[str, Any]


def main() -> int:
    """Measure, print tables and verdicts, write the results."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    modes = options.modes.split(",")
    kinds = [kind for kind in CONTENDERS if not options.only or kind.name in options.only.split(",")]
    rows = [row for group in _groups(modes) for row in measure_all(kinds, group, options)]
    write(rows)
    for mode in modes:
        show([row for row in rows if row["wire_mode"] == mode], mode)
    if verdict.MODE in modes:
        show_verdicts(rows)
    lost = [row for row in rows if row["left_out"] and _in_gate(row["name"], kinds)]
    return 1 if lost else 0


def _options() -> argparse.Namespace:
    quick = bool(os.environ.get("QUICK"))
    gate = ",".join(kind.name for kind in CONTENDERS if kind.gate)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    modes = verdict.MODE if quick else ",".join(MODES)
    parser.add_argument("--modes", default=modes, help=f"of {', '.join(MODES)}; default {modes}")
    parser.add_argument("--repetitions", type=int, default=5, help="in wire mode nic; default 5")
    parser.add_argument("--bounds", type=int, default=3, help="repetitions in the other modes; default 3")
    parser.add_argument("--seconds", type=int, default=1, help="of each TCP run")
    parser.add_argument("--only", default=gate if quick else "", help="contenders, separated by commas")
    options = parser.parse_args()
    if unknown := set(options.modes.split(",")) - set(MODES):
        parser.error(f"no wire mode {', '.join(unknown)}. choose of {', '.join(MODES)}")
    if unknown := set(filter(None, options.only.split(","))) - {kind.name for kind in CONTENDERS}:
        parser.error(f"no contender {', '.join(unknown)}")
    return options


def _groups(modes: list[str]) -> list[list[str]]:
    """Return the modes by the wire they need."""
    return [group for routed in (False, True) if (group := [m for m in modes if (m == ROUTED) == routed])]


def _rounds(modes: list[str], options: argparse.Namespace) -> list[tuple[int, str]]:
    """Return each repetition and its mode, in the order in which they are measured."""
    times = {mode: options.repetitions if mode == verdict.MODE else options.bounds for mode in modes}
    return [(turn, mode) for turn in range(max(times.values())) for mode in modes if turn < times[mode]]


def measure_all(kinds: Sequence[type[Contender]], modes: list[str], options: argparse.Namespace) -> list[Row]:
    """Return a row per contender and wire mode: medians and the repetitions behind them."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, wire(modes[0]) as hosts:
        contenders = [kind(number, Path(scratch)) for number, kind in enumerate(kinds, start=1)]
        failed = {contender.name: reason for contender in contenders if (reason := connect(hosts, contender))}
        for repetition, mode in _rounds(modes, options):
            shape(hosts, mode)
            for contender in [contender for contender in contenders if contender.name not in failed]:
                try:
                    run = awake(hosts, contender, options.seconds)
                    runs.setdefault((contender.name, mode), []).append(run)
                except (RuntimeError, OSError) as error:
                    failed[contender.name] = left_out(
                        contender, f"{mode}, repetition {repetition + 1}: {error}"
                    )
            print(f"{time.strftime('%T')} {mode}: repetition {repetition + 1}", flush=True)
        return [
            row(contender, mode, runs.get((contender.name, mode), []), failed.get(contender.name, ""))
            for mode in modes
            for contender in contenders
        ]


def connect(hosts: Hosts, contender: Contender) -> str:
    """Bring one up and stop it until its turn; return why that failed, or nothing."""
    try:
        reason = contender.missing()
        if not reason:
            contender.connect(hosts)
            warm_up(hosts, contender)
    except (RuntimeError, OSError) as error:
        reason = str(error)
    contender.pause()
    return left_out(contender, reason) if reason else ""


def left_out(contender: Contender, reason: str) -> str:
    """Say why a contender is not measured any more, and return it in one line."""
    reason = " ".join(reason.split())
    print(f"left out: {contender.name}: {reason}", flush=True)
    return reason


def awake(hosts: Hosts, contender: Contender, seconds: float) -> dict[str, float]:
    """Measure one while all others are stopped; once more if something went wrong."""
    contender.resume()
    try:
        try:
            return measure(hosts, contender, seconds)
        except RuntimeError as error:
            print(f"again: {contender.name}: {error}", flush=True)
            return measure(hosts, contender, seconds)
    finally:
        contender.pause()


def row(contender: Contender, mode: str, repetitions: list[dict[str, float]], reason: str) -> Row:
    """Return what the results file has of a contender; `reason`: why nothing, or no more, was measured."""
    version = contender.version() if repetitions else ""
    medians = {key: median(repetitions, key) for key in QUANTITIES}
    name = {"name": contender.name, "version": version, "wire_mode": mode}
    return {**name, **medians, "left_out": reason, "repetitions": repetitions}


def median(repetitions: list[dict[str, float]], key: str) -> float | None:
    """Return the median of a quantity; None if it was not measured."""
    values = [run[key] for run in repetitions if key in run]
    return statistics.median(values) if values else None


def write(rows: list[Row]) -> None:
    """Write the results, the plot of the gates' mode, and which machine they are from."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "latest.svg").write_text(plot.draw([row for row in rows if row["wire_mode"] == verdict.MODE]))
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": model[1] if model else os.uname().machine,
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "load_average": os.getloadavg()[2],
    }
    (RESULTS / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")


def show(rows: list[Row], mode: str) -> None:
    """Print one mode's table; in brackets the ratio to wireguard-go."""
    base = next((row for row in rows if row["name"] == BASE), {})
    table = Table("", *QUANTITIES.values(), title=f"wire mode {mode} (x: ratio to {BASE})")
    for row in rows:
        table.add_row(row["name"], *(cell(row[key], base.get(key)) for key in QUANTITIES))
    console = Console(width=190)  # enough for the table wherever it goes
    console.print(table)
    for row in rows:
        if row["left_out"]:
            console.print(f"{row['name']}: left out: {row['left_out']}", highlight=False, markup=False)


def cell(value: float | None, base: float | None) -> str:
    """Return a number with its ratio to the base's, if there are such."""
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ({value / base:.2f}x)" if base else "")


def show_verdicts(rows: list[Row]) -> None:
    """Print a line per gate."""
    table = Table("", "against", "quantity", "found", "asked", "verdict", title="gates")
    for line in verdict.lines(rows):
        table.add_row(*line)
    Console(width=110).print(table)


def _in_gate(name: str, kinds: Sequence[type[Contender]]) -> bool:
    return any(kind.gate and kind.name == name for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
