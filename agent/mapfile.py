"""The last map on disk: a whole one, then a line for every change since.

    {"map": the whole map, "sha256": of it}
    {"change": what is different since the line before, "sha256": of that line's sum and this change}
    …

A change of one peer among thousands costs a line, not the whole file. Once the changes outweigh the map
it is written whole again: aside, synced, renamed. What a crash leaves is the map as of the last line
that was synced: a torn line at the end is as if it had never been begun. Damage anywhere else is found.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from overmesh.agent.peermap import Held
from overmesh.agent.records import Floor
from overmesh.files import as_bytes, as_text, json_line, replace_file

# Changes are let grow to the size of the map, and to this many bytes in any case.
_ROOM = 64 << 10

Change = dict[str, Any]
Parts = dict[str, dict[str, Any]]


class MapFile:
    """One file; a single thread uses it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # What the file says, as far as that is known: None asks for a whole map.
        self._kept: Held | None = None
        self._sum = ""
        self._whole = self._size = 0

    def load(self) -> Held:
        """Return the map.

        Raises:
            OSError: the file can't be read.
            ValueError, KeyError, TypeError, AttributeError: it is damaged.

        """
        self._kept = None
        first, *changes = self.path.read_bytes().splitlines()
        change, total = _read_line("map", first, "")
        parts: Parts = {name: {} for name in _DECODERS}
        _take(change, parts)
        for number, line in enumerate(changes, 1):
            try:
                following, total = _read_line("change", line, total)
            except ValueError:
                if number < len(changes):
                    raise
                break  # torn: the host went down while it was written
            change = following
            _take(change, parts)
        return Held(int(change["revision"]), int(change["newest"]), **parts)

    def save(self, held: Held) -> None:
        """Keep a map; it is on disk when this returns.

        Raises:
            OSError: it can't be written; the file holds the map before.

        """
        # After a failure nobody knows how the file ends: then it is written whole.
        kept, self._kept = self._kept, None
        if kept is None or not self._append(_change(kept, held)):
            self._replace(held)
        self._kept = held

    def _append(self, change: Change) -> bool:
        """Add a line, unless it is time to write the whole map again."""
        line, total = _line("change", change, self._sum)
        if self._size + len(line) > 2 * self._whole + _ROOM:
            return False
        with self.path.open("ab") as file:
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), self._size)
                raise
        self._sum, self._size = total, self._size + len(line)
        return True

    def forget(self) -> None:
        """Drop it."""
        self._kept = None
        self.path.unlink(missing_ok=True)

    def _replace(self, held: Held) -> None:
        line, self._sum = _line("map", _change(Held(), held), "")
        replace_file(self.path, line)
        self._whole = self._size = len(line)


# Lines.


def _change(before: Held, after: Held) -> Change:
    """Return what leads from one map to another; a whole map is what leads to it from none."""
    change: Change = {"revision": after.revision, "newest": after.newest}
    for name, encode in _ENCODERS.items():
        old, new = getattr(before, name), getattr(after, name)
        change[name] = {key: encode(value) for key, value in new.items() if old.get(key) != value}
        if removed := sorted(old.keys() - new.keys()):
            change[f"no {name}"] = removed
    return change


def _take(change: Change, parts: Parts) -> None:
    for name, decode in _DECODERS.items():
        parts[name] |= {key: decode(value) for key, value in change[name].items()}
        for key in change.get(f"no {name}", ()):
            del parts[name][key]


def _line(kind: str, change: Change, before: str) -> tuple[bytes, str]:
    """Return a line, and its sum: over the sum of the line before, so that none can be missing."""
    total = hashlib.sha256(before.encode() + json_line(change)).hexdigest()
    return json_line({kind: change, "sha256": total}), total


def _read_line(kind: str, line: bytes, before: str) -> tuple[Change, str]:
    whole = json.loads(line)
    change: Change = whole[kind]
    if _line(kind, change, before)[1] != whole["sha256"]:
        raise ValueError("its checksum is wrong")
    return change, whole["sha256"]


_ENCODERS: Mapping[str, Callable[[Any], Any]] = {
    "items": as_text,
    "good": as_text,
    "floors": lambda floor: [floor.serial, floor.until],
}
_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "items": as_bytes,
    "good": as_bytes,
    "floors": lambda pair: Floor(*map(int, pair)),
}
