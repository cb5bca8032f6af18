"""Writes the tables of docs/performance.md again from the latest results.

    python -m benchmarks.report

What stands between the two marks there is replaced; all else is left as it is.
"""

import json
from typing import Any

from benchmarks import verdict
from benchmarks.measure import QUANTITIES
from benchmarks.overlay import BASE, RESULTS, cell
from benchmarks.peers import ROOT

DOCUMENT = ROOT / "docs/performance.md"
BEGIN = "<!-- written by `python -m benchmarks.report`: change nothing between the marks -->"
END = "<!-- end of what is written -->"

Row = dict[str, Any]


def main() -> None:
    """Replace what stands between the marks."""
    rows = json.loads((RESULTS / "latest.json").read_text())
    machine = json.loads((RESULTS / "machine.json").read_text())
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), tables(rows, machine)))


def replaced(document: str, content: str, begin_mark: str = BEGIN) -> str:
    """Return the document with this content between its marks.

    Raises:
        ValueError: a mark is not there.

    """
    before, begin, rest = document.partition(begin_mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"one of the marks is missing: {begin_mark}, {END}")
    return f"{before}{begin}\n\n{content}\n{END}{after}"


def tables(rows: list[Row], machine: dict[str, Any]) -> str:
    """Return the machine, the verdicts and a table per wire mode, in Markdown."""
    modes = list(dict.fromkeys(row["wire_mode"] for row in rows))
    repetitions = max((len(row["repetitions"]) for row in rows), default=0)
    head = (
        f"{machine['date']}; {machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}; "
        f"medians of {repetitions} interleaved repetitions, in brackets the ratio to {BASE}.\n"
    )
    per_mode = [_mode([row for row in rows if row["wire_mode"] == mode], mode) for mode in modes]
    return "\n".join([head, _versions(rows), _verdicts(rows), *per_mode])


def _versions(rows: list[Row]) -> str:
    versions = {row["name"]: row["version"] for row in rows if row["version"]}
    return "Versions: " + "; ".join(f"{name} {version}" for name, version in versions.items()) + ".\n"


def _verdicts(rows: list[Row]) -> str:
    heads = ["", "against", "quantity", "found", "asked", "verdict"]
    return "### Gates\n\n" + _table(heads, [list(line) for line in verdict.lines(rows)])


def _mode(rows: list[Row], mode: str) -> str:
    base = next((row for row in rows if row["name"] == BASE), {})
    lines = [[row["name"], *(cell(row[key], base.get(key)) for key in QUANTITIES)] for row in rows]
    left_out = "".join(f"\nLeft out: {row['name']}: {row['left_out']}\n" for row in rows if row["left_out"])
    return f"### Wire mode {mode}\n\n" + _table(["", *QUANTITIES.values()], lines) + left_out


def _table(heads: list[str], lines: list[list[str]]) -> str:
    all_lines = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in all_lines)


if __name__ == "__main__":
    main()
