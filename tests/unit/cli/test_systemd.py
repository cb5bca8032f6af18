"""The units: what systemd does when a daemon ends."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from overmesh.cli import systemd
from overmesh.errors import StoreUnavailableError, UsageError

UNITS = Path(systemd.__file__).parent / "units"


@pytest.fixture(params=["overmesh-agent.service", "overmesh-controller.service"])
def unit(request: pytest.FixtureRequest) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd minds the case
    parser.read_string((UNITS / request.param).read_text())
    return parser


def test_it_is_started_again_however_often_it_fails(unit: ConfigParser) -> None:
    # With systemd's own limit (5 starts in 10 s) a controller would stay down whose etcd comes up later.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartSec"] == "2"


def test_it_is_not_started_again_with_settings_that_can_not_be_right(unit: ConfigParser) -> None:
    assert unit["Service"]["RestartPreventExitStatus"] == str(UsageError.exit_code)
    assert str(StoreUnavailableError.exit_code) != unit["Service"]["RestartPreventExitStatus"]


def test_the_agent_s_is_for_where_meshctl_is(tmp_path: Path) -> None:
    assert f"ExecStart={tmp_path}/meshctl agent run\n" in systemd.unit(tmp_path / "meshctl")
