"""Keeps the results of the control plane, and writes table and picture from them.

benchmarks/results/control.json  a row for each store, number of agents and of controllers
benchmarks/results/control.svg   CPU and seconds against the number of agents
docs/scale.md                    the table, between its marks
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.plot import BAR, GAP, HEAD, LABEL, MARGIN, STYLE, VALUE, WIDTH
from benchmarks.report import replaced

Row = Mapping[str, Any]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/control.json"
PICTURE = RESULTS.with_suffix(".svg")
DOCUMENT = ROOT / "docs/scale.md"
BEGIN = "<!-- written by `python -m benchmarks.control`: change nothing between the marks -->"

# Quantity -> what the table calls it, and how many digits it gets.
QUANTITIES = {
    "join_per_cpu_s": ("full joins per CPU-second", 0),
    "join_per_s": ("full joins per second", 0),
    "memory_kib_per_member": ("memory per member that is not connected, KiB", 0),
    "memory_kib_per_agent": ("memory per member that is, KiB", 0),
    "connect_cpu_s": ("all connect by resume, CPU-s", 1),
    "idle_cpu_share": ("idle, share of a core", 3),
    "slow_change_delivered_s": ("one change, acks after 1.5 s: to the last agent, s", 2),
    "slow_change_delivered_cpu_s": ("the same, CPU-s", 2),
    "slow_change_acked_s": ("to its last ack, s", 2),
    "slow_change_acked_cpu_s": ("the same, CPU-s", 2),
    "change_delivered_s": ("one change, acks at once: to the last agent, s", 2),
    "change_acked_s": ("to its last ack, s", 2),
    "change_acked_cpu_s": ("the same, CPU-s", 2),
    "change_encoded": ("records encoded for it", 0),
    "collapse_deltas_per_agent": ("25 changes in 5 s: deltas per agent", 1),
    "collapse_cpu_s": ("the same, CPU-s", 1),
    "failover_s": ("all back after SIGKILL of their controller, s", 1),
    "failover_cpu_s": ("the same, CPU-s of the other", 1),
    "failover_snapshots": ("full snapshots sent meanwhile", 0),
}
PANELS = (
    "slow_change_delivered_s",
    "change_acked_cpu_s",
    "memory_kib_per_agent",
    "failover_s",
)


def keep(row: Row) -> None:
    """Put what a run found in the place of what one of the same setting has found before."""
    machine = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    rows = {_setting(other): other for other in _rows()}
    rows[_setting(row)] = {**rows.get(_setting(row), {}), **row, "machine": machine}
    RESULTS.write_text(json.dumps([rows[setting] for setting in sorted(rows)], indent=1) + "\n")


def _rows() -> list[Row]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def _setting(row: Row) -> tuple[str, int, bool, int]:
    return row["store"], row["controllers"], row.get("spread", False), row["agents"]


def write() -> None:
    """Write the picture, and the table into the document."""
    rows = _rows()
    PICTURE.write_text(draw(rows))
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), table(rows), BEGIN))
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return a table in Markdown: a line per quantity, a column per row."""
    heads = ["", *map(_name, rows)]
    lines = [
        [title, *(_cell(row.get(quantity), digits) for row in rows)]
        for quantity, (title, digits) in QUANTITIES.items()
    ]
    all_lines = [heads, ["---", *["---:"] * len(rows)], *lines]
    machine = rows[-1]["machine"] if rows else {}
    said = f"{machine.get('date')}; {machine.get('cores')} cores, Linux {machine.get('kernel')}.\n\n"
    return said + "".join(f"| {' | '.join(line)} |\n" for line in all_lines)


def _name(row: Row) -> str:
    spread = " (spread)" if row.get("spread") else ""
    return f"{row['agents']:,} agents, {row['controllers']}{spread} on {row['store']}"


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def draw(rows: Sequence[Row]) -> str:
    """Return an SVG document: a panel per quantity, a bar per row."""
    height = HEAD + len(rows) * (BAR + GAP) + MARGIN
    panels = []
    for at, quantity in enumerate(PANELS):
        x, y = MARGIN + at % 2 * (WIDTH + MARGIN), MARGIN + at // 2 * height
        panels.append(f'<g transform="translate({x} {y})">{_panel(rows, quantity)}</g>')
    size = f"{2 * WIDTH + 3 * MARGIN} {2 * height + 2 * MARGIN}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">',
            "<title>The control plane by number of agents</title>",
            f"<style>{STYLE}</style>",
            '<rect class="ground" width="100%" height="100%" rx="8"/>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(rows: Sequence[Row], quantity: str) -> str:
    title, digits = QUANTITIES[quantity]
    values = [row.get(quantity) or 0.0 for row in rows]
    scale = (WIDTH - LABEL - VALUE) / (max(values, default=0) or 1)
    parts = [f'<text class="title" y="14">{escape(title)}</text>']
    for at, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = HEAD + at * (BAR + GAP)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(_name(row))}</text>',
            f'<rect class="ours" x="{LABEL}" y="{y}" width="{value * scale:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LABEL + value * scale + 6:.1f}" y="{y + 12}">{value:,.{digits}f}</text>',
        ]
    return "\n".join(parts)
