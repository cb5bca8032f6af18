"""How meshctl draws: tables and facts for people, JSON for machines, and numbers as words."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from overmesh.model import Kind, Mode, Suite

if TYPE_CHECKING:
    from overmesh.proto import mesh_pb2

Cell = str | Text

GOOD, BAD, DIM = "green", "red", "dim"
_PIPE_WIDTH = 240


def console() -> Console:
    """Return where people read. Text is never markup: addresses and reasons hold brackets.

    In a pipe or a file lines are as long as they need to be, unless COLUMNS says otherwise.
    """
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH if wide else None)


def show(*parts: Table | Cell) -> None:
    """Print parts one after the other, without trailing blanks."""
    screen = console()
    with screen.capture() as capture:
        for part in parts:
            screen.print(part)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def show_json(value: Mapping[str, object], *, line: bool = False) -> None:
    """Print a value for machines; `line` puts it on one, for verbs that print many."""
    typer.echo(json.dumps(value, indent=None if line else 2))


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = ()) -> Table:
    """Return rows under upper-case headings; columns named in `right` are numbers."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        grid.add_column(name.upper(), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def facts(rows: Iterable[tuple[str, Cell]]) -> Table:
    """Return named values below each other."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(style=DIM, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def state(*, good: bool, yes: str, no: str) -> Text:
    """Return the word for a state, green or red."""
    return Text(yes, GOOD) if good else Text(no, BAD)


def problems(found: "Iterable[mesh_pb2.Problem]", whose: str = "") -> list[Text]:
    """Return a line for each problem, of the named one's if not of all."""
    owner = f"{whose}: " if whose else ""
    return [Text(f"! {owner}{problem.subject}: {problem.reason}", BAD) for problem in found]


def warn(problem: str) -> None:
    """Say on stderr what is wrong with the whole of an answer; stdout holds that, for people or machines."""
    typer.secho(f"! {problem}", fg=BAD, err=True)


def problems_json(found: "Iterable[mesh_pb2.Problem]") -> list[dict[str, str]]:
    """Return problems for machines."""
    return [{"subject": problem.subject, "reason": problem.reason} for problem in found]


_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: 45s, 12m 5s, 3h, 2d 4h."""
    rest, words = max(0, int(seconds)), []
    for unit, length in _SPANS:
        count, rest = divmod(rest, length)
        if count:
            words.append(f"{count}{unit}")
        elif words:
            break
    return " ".join(words[:2]) or "0s"


def ago(seconds: float) -> str:
    """Return how long ago something was; negative: never."""
    return "never" if seconds < 0 else "now" if seconds < 1 else f"{span(seconds)} ago"


def size(count: int) -> str:
    """Return a number of bytes: 999 B, 1.5 KiB, 3.2 GiB."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def counted(number: int, noun: str) -> str:
    """Return a number of things: 0 peers, 1 peer, 2 peers."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def milliseconds(nanoseconds: float) -> str:
    """Return a round trip: 0.184 ms, 12.3 ms, 184 ms."""
    value = nanoseconds / 1e6
    return f"{value:.{3 if value < 10 else 1 if value < 100 else 0}f} ms"


def mode(number: int) -> str:
    """Return the word for how packets travel (mesh.proto, Mode)."""
    return _word(Mode, number) or "unknown"


def suite(number: int) -> str:
    """Return the word for how packets are sealed (mesh.proto, Suite); empty for not at all."""
    return _word(Suite, number)


def kind(number: int) -> str:
    """Return the word for what runs on a member (mesh.proto, Kind)."""
    return _word(Kind, number) or "agent"


def _word(names: type[IntEnum], number: int) -> str:
    """Return a number's name in lower case; empty when it has none."""
    return next((name.name.lower() for name in names if name == number), "")


class _Endpoint(Protocol):
    address: str
    port: int


def endpoint(end: _Endpoint) -> str:
    """Return an underlay endpoint as it is written: 192.0.2.1:6081, [2001:db8::1]:6081."""
    return f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"
