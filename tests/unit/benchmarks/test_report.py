import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks import plot, report
from benchmarks.measure import QUANTITIES


def row(name: str, value: float | None, left_out: str = "") -> dict[str, Any]:
    quantities = dict.fromkeys(QUANTITIES, value)
    runs = [quantities] if value is not None else []
    return {
        "name": name,
        "version": "1",
        "wire_mode": "nic",
        **quantities,
        "left_out": left_out,
        "repetitions": runs,
    }


ROWS = [
    row("link", 90.0),
    row("wireguard-go", 1.0),
    row("gotatun", None, "no <rustc>"),
    row("overmesh-aes", 3.0),
]
MACHINE = {"date": "today", "cores": 2, "cpu": "some", "kernel": "6.18"}


def test_what_stands_between_the_marks_is_replaced() -> None:
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.replaced(document, "new")
    assert once == f"before\n{report.BEGIN}\n\nnew\n{report.END}\nafter\n"
    assert report.replaced(once, "new") == once
    with pytest.raises(ValueError, match="one of the marks is missing"):
        report.replaced("no marks", "new")


def test_the_tables_name_what_was_left_out() -> None:
    text = report.tables(ROWS, MACHINE)
    assert "today; 2 cores (some), Linux 6.18; medians of 1 interleaved" in text
    assert "| overmesh-aes | 3 (3.00x) |" in text
    assert "| gotatun | - | - |" in text
    assert "Left out: gotatun: no <rustc>" in text


def bars(svg: str) -> list[float]:
    rects = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    return [float(rect.attrib["width"]) for rect in rects if rect.attrib["class"] != "ground"]


def test_a_bar_per_contender_and_panel_none_beyond_its_panel() -> None:
    lengths = bars(plot.draw(ROWS))
    assert len(lengths) == 3 * len(plot.PANELS)
    link, wireguard, ours = lengths[:3]
    assert ours == pytest.approx(3 * wireguard, abs=0.2)
    assert link == ours == plot.WIDTH - plot.LABEL - plot.VALUE


def test_nothing_measured_is_a_picture_too() -> None:
    assert bars(plot.draw([])) == bars(plot.draw([row("link", None)])) == []
    assert bars(plot.draw([row("wireguard-go", 0.0)])) == [0] * len(plot.PANELS)
