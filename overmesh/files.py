"""Files that survive a crash, and how bytes stand in JSON ones."""

import base64
import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put data in place of what a file holds: after a crash there is the old or the new, never half of it.

    rename(2) is atomic; the directory is synced too, or the rename itself could be lost.

    Raises:
        OSError: it could not be done; the old content stays.

    """
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was renamed or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(value: Any) -> bytes:
    """Return a value as one line of JSON: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def as_text(data: bytes) -> str:
    """Return bytes as they stand in JSON: in base64."""
    return base64.b64encode(data).decode()


def as_bytes(text: str) -> bytes:
    """Return the bytes that a text in JSON stands for.

    Raises:
        ValueError: it is not base64.

    """
    return base64.b64decode(text, validate=True)
