"""The results as a picture: a panel per quantity, a bar per contender; SVG, for light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]

# Quantity -> title.
PANELS = {
    "tcp1_gbps": "TCP, one stream, Gbit/s",
    "gbit_per_cpu_s": "Gbit per CPU-second of the whole machine",
    "kpps_64": "packets of 64 bytes, thousands a second",
    "rtt_load_us": "round trip under TCP load, µs (less is better)",
}
WIDTH, LABEL, VALUE = 460, 150, 62  # pixels: of a panel, and in it of names and of numbers
BAR, GAP, HEAD, MARGIN = 15, 7, 34, 20

STYLE = """
  svg { font: 12px system-ui, sans-serif; }
  .ground { fill: #ffffff; } text { fill: #24292f; } .title { font-weight: 600; font-size: 13px; }
  .ours { fill: #0969da; } .peer { fill: #9aa4af; } .bound { fill: #d0d7de; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #e6edf3; }
    .ours { fill: #4493f8; } .peer { fill: #6e7681; } .bound { fill: #30363d; }
  }
"""


def draw(rows: Sequence[Row]) -> str:
    """Return an SVG document of rows of one wire mode; those without numbers are left out."""
    measured = [row for row in rows if row["tcp1_gbps"] is not None]
    panel_height = HEAD + len(measured) * (BAR + GAP) + MARGIN
    width, height = 2 * WIDTH + 3 * MARGIN, 2 * panel_height + 2 * MARGIN
    panels = []
    for at, (quantity, title) in enumerate(PANELS.items()):
        x, y = MARGIN + at % 2 * (WIDTH + MARGIN), MARGIN + at // 2 * panel_height
        panels.append(f'<g transform="translate({x} {y})">{_panel(measured, quantity, title)}</g>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    ground = f'<rect class="ground" width="{width}" height="{height}" rx="8"/>'
    title = "<title>Overmesh beside its peers</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", ground, *panels, "</svg>"]) + "\n"


def _panel(rows: Sequence[Row], quantity: str, title: str) -> str:
    # The bare wire would squeeze all others: its bar ends at the edge, its number says the rest.
    contenders = [row[quantity] for row in rows if row["name"] != "link"]
    scale = (WIDTH - LABEL - VALUE) / max(contenders, default=0) if any(contenders) else 0
    parts = [f'<text class="title" y="14">{escape(title)}</text>']
    for at, row in enumerate(rows):
        y, value = HEAD + at * (BAR + GAP), row[quantity]
        length = min(value * scale, WIDTH - LABEL - VALUE)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(row["name"])}</text>',
            f'<rect class="{_kind(row["name"])}" x="{LABEL}" y="{y}" '
            f'width="{length:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 12}">{_short(value)}</text>',
        ]
    return "\n".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _kind(name: str) -> str:
    if name.startswith("overmesh"):
        return "ours"
    return "bound" if name in {"link", "vxlan"} else "peer"
