import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from overmesh.cli import output
from overmesh.cli.options import Given, as_flags, seconds, with_agent_settings
from overmesh.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("30m", 1800), ("1h", 3600), ("1h30m", 5400), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_durations(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "5", "s", "1 h", "-1h", "1.5h", "1h30", "h1", "1y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        seconds(text)


@pytest.mark.parametrize("text", ["0s", "0h0m"])
def test_no_time_at_all(text: str) -> None:
    with pytest.raises(UsageError, match="is no time at all") as raised:
        seconds(text)
    assert "more than 0" in raised.value.fix


def test_settings_as_they_would_be_typed() -> None:
    given = {"port": 7000, "lanes": 2, "endpoints": ("a", "b"), "state_dir": None, "log_format": "json"}
    assert shlex.join(as_flags(given)) == "--port 7000 --lanes 2 --endpoint a --endpoint b --log-format json"


def test_offloads_are_named_in_one_list_or_several() -> None:
    taken: dict[str, Any] = {}

    def verb(*, given: Given) -> None:
        taken.update(given)

    app = typer.Typer()
    app.command()(with_agent_settings(verb))

    def run(typed: list[str]) -> Any:
        return CliRunner().invoke(app, typed)

    assert run(["--no-offload", "uso, gro", "--no-offload", "tso"]).exit_code == 0
    assert taken["no_offload"] == ("uso", "gro", "tso")
    assert as_flags({"no_offload": taken["no_offload"]})[:2] == ["--no-offload", "uso"]
    wrong = run(["--no-offload", "uso,lro"]).exception
    assert isinstance(wrong, UsageError)
    assert (wrong.cause, wrong.fix) == ("'lro' is no offload", "choose from tso, uso, gso, gro, avx512")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (725, "12m 5s"),
        (3600, "1h"),
        (3605, "1h"),
        (187_200, "2d 4h"),
        (-5, "0s"),
    ],
)
def test_spans(value: float, words: str) -> None:
    assert output.span(value) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 52, "4.0 PiB"),
    ],
)
def test_sizes(count: int, words: str) -> None:
    assert output.size(count) == words


@pytest.mark.parametrize(("ns", "words"), [(184_000, "0.184 ms"), (12_345_000, "12.3 ms"), (184e6, "184 ms")])
def test_round_trips(ns: float, words: str) -> None:
    assert output.milliseconds(ns) == words


def test_words_with_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(output.table(("end",), [["[fd00::1]:6081"]]), "[bold]x[/bold]")
    assert capsys.readouterr().out == "END\n[fd00::1]:6081\n[bold]x[/bold]\n"


def test_lines_are_not_folded_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS")
    output.show(output.table(("a", "b"), [["x" * 90, "y" * 90]]))
    assert len(capsys.readouterr().out.splitlines()) == 2
