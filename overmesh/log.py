"""One line an event, on standard error: `time LEVEL part message key=value …`, or the same as JSON.

Say what happened in the message, with whom in the fields:
`logging.getLogger("overmesh.controller").info("node joined", extra={"node": name, "address": ip})`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from overmesh.config import LogFormat

_JSON = json.JSONEncoder(default=str)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Send everything that is logged to standard error, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO controller node joined node=web-1 address=10.77.3.9`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback of an unexpected error below it."""
        line = f"{_time(record)} {record.levelname} {_part(record)} {record.getMessage()}"
        line += "".join(f" {key}={_word(value)}" for key, value in _fields(record).items())
        line = line.replace("\n", "\\n")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """The same with every field under its own key."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object without line breaks."""
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "part": _part(record),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return _JSON.encode(event)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix("overmesh.")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(char in ' "=\n' for char in text) else text
