import json
import logging

import pytest

from overmesh.log import JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("overmesh.controller", logging.INFO, __file__, 1, message, None, None)
    made.created = 1_800_000_000.25
    vars(made).update(fields)
    return made


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"node": "a", "port": 6081}, " node=a port=6081"),
        ({"reason": "not a b"}, ' reason="not a b"'),
        ({"reason": ""}, ' reason=""'),
        ({"reason": 'say "x"\nnode=b'}, r' reason="say \"x\"\nnode=b"'),
    ],
)
def test_text_is_one_line_that_can_be_taken_apart(fields: dict[str, object], text: str) -> None:
    line = TextFormatter().format(record("node joined", **fields))
    assert line == f"2027-01-15T08:00:00.250Z INFO controller node joined{text}"


def test_a_message_can_not_forge_a_second_line() -> None:
    assert "\n" not in TextFormatter().format(record("bad\n2027 INFO controller good"))


def test_json_has_every_field_under_its_key() -> None:
    event = json.loads(JsonFormatter().format(record("node joined", node="a\nb", port=6081)))
    assert event == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "info",
        "part": "controller",
        "message": "node joined",
        "node": "a\nb",
        "port": 6081,
    }


def test_an_unexpected_error_brings_its_traceback() -> None:
    failed = record("unexpected")
    failed.exc_info = (ValueError, ValueError("x"), None)
    assert TextFormatter().format(failed).endswith("ValueError: x")
    line = JsonFormatter().format(failed)
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: x")
