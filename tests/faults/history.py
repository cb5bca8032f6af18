"""What clients asked and were answered, what agents held, and when: written as it happens, read back whole.

    Recorder ──lines of JSON──► file ──read──► History ──► checker.py

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share and no test turns.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

# ok: it holds. refused: it does not, and never will. unknown: nobody has said.
OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"


@dataclass(slots=True)
class Call:
    """One wish of a client, however often it had to ask and whomever.

    what: "token", "join", "remove", "report", "look". said: what it asked for, and what it was answered:

        token   token, uses
        join    node, token; addresses, revision
        remove  node; revision
        report  node, places; revision
        look    node; found

    controller: the one that answered. error: the last answer that was none.
    """

    number: int
    who: str
    what: str
    began: float
    said: dict[str, Any]
    ended: float = math.inf
    outcome: str = UNKNOWN
    controller: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds for certain."""
        return self.outcome == OK

    @property
    def node(self) -> str:
        """Whom it is about."""
        return str(self.said.get("node", ""))

    @property
    def revision(self) -> int:
        """At which revision of the map it holds; 0: unknown."""
        return int(self.said.get("revision", 0))

    def __str__(self) -> str:
        said = " ".join(f"{key}={value}" for key, value in self.said.items())
        ended = "never" if self.ended == math.inf else f"{self.ended:.3f}"
        by = f" by {self.controller}" if self.controller else ""
        error = f" ({self.error})" if self.error else ""
        return f"{self.began:.3f}-{ended} {self.who}: {self.what} {said}: {self.outcome}{by}{error}"


@dataclass(frozen=True, slots=True)
class Held:
    """A map that an agent took over, as what differs from the one that it held before.

    joined: node id -> overlay addresses. moved: node id -> endpoints. refused: every record of the map
    that it does not use, and why.
    """

    at: float
    who: str
    revision: int
    digest: str
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    moved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.who} holds revision {self.revision}, digest {self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was done to the mesh, or the end of it: "healed", at the end of the last fault."""

    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.what}"


@dataclass(slots=True)
class History:
    """All of it, in the order in which it happened."""

    calls: list[Call] = field(default_factory=list)
    maps: list[Held] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    @classmethod
    def read(cls, *paths: Path) -> "History":
        """Read what recorders wrote; a line that a killed one did not finish is left out."""
        history, calls = cls(), {}
        for kind, values in _lines(paths):
            if kind == "began":
                calls[values["number"]] = Call(**values)
            elif kind == "ended":
                _end(calls[values["number"]], values)
            elif kind == "held":
                history.maps.append(_held(values))
            else:
                history.marks.append(Mark(**values))
        history.calls = sorted(calls.values(), key=lambda call: call.began)
        history.maps.sort(key=lambda held: held.at)
        history.marks.sort(key=lambda mark: mark.at)
        return history

    def of(self, what: str) -> list[Call]:
        """Return the calls of one kind."""
        return [call for call in self.calls if call.what == what]


def _lines(paths: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, values = json.loads(line)
                yield kind, values


def _held(values: dict[str, Any]) -> Held:
    tuples = {key: {node: tuple(of) for node, of in values[key].items()} for key in ("joined", "moved")}
    return Held(**{**values, **tuples, "gone": tuple(values["gone"])})


def _end(call: Call, values: dict[str, Any]) -> None:
    call.ended, call.outcome = values["ended"], values["outcome"]
    call.controller, call.error = values["controller"], values["error"]
    call.said |= values["said"]


class Recorder:
    """Writes a history. Each line is on its way to the file when the method returns."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._calls = 0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Record to a new file for the length of a block."""
        with path.open("w") as file:
            yield cls(file)

    @contextmanager
    def call(self, who: str, what: str, **said: Any) -> Iterator[Call]:
        """Record a call: the block sets its outcome, and what was answered."""
        self._calls += 1
        call = Call(self._calls, who, what, time.monotonic(), said)
        self._write("began", number=call.number, who=who, what=what, began=call.began, said=said)
        asked = dict(said)
        try:
            yield call
        finally:
            call.ended = time.monotonic()
            answer = {key: value for key, value in call.said.items() if asked.get(key) != value}
            self._write(
                "ended",
                number=call.number,
                ended=call.ended,
                outcome=call.outcome,
                controller=call.controller,
                error=call.error,
                said=answer,
            )

    def held(self, held: Held) -> None:
        """Record what an agent holds now."""
        self._write("held", **{name: getattr(held, name) for name in Held.__slots__})

    def mark(self, what: str) -> float:
        """Record that something was done; return when."""
        at = time.monotonic()
        self._write("mark", at=at, what=what)
        return at

    def _write(self, kind: str, **values: Any) -> None:
        self._file.write(json.dumps([kind, values], separators=(",", ":")) + "\n")
        self._file.flush()
