import re
from pathlib import Path

import pytest

from overmesh.config import MAX_LANES, AgentConfig, ControllerConfig, load
from overmesh.errors import ConfigError


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('interface = "file0"\nport = 1000\nmtu = 1300\n')
    config = load(
        AgentConfig,
        {"mtu": 1400, "port": None},
        file=file,
        environ={"OVERMESH_PORT": "2000", "OVERMESH_MTU": "1350"},
    )
    assert (config.interface, config.port, config.mtu) == ("file0", 2000, 1400)


def test_every_type_can_be_set_from_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text('state_dir = "/x"\njoin_port = 5\nranges = ["10.0.0.0/8"]\nlog_format = "json"\n')
    from_file = load(ControllerConfig, {}, file=file, environ={})
    from_environ = load(
        ControllerConfig,
        {},
        environ={
            "OVERMESH_STATE_DIR": "/x",
            "OVERMESH_JOIN_PORT": "5",
            "OVERMESH_RANGES": "10.0.0.0/8",
            "OVERMESH_LOG_FORMAT": "json",
        },
    )
    expected = ControllerConfig(state_dir=Path("/x"), join_port=5, ranges=("10.0.0.0/8",), log_format="json")
    assert from_file == from_environ == expected


def test_offloads_to_do_without(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('no_offload = ["uso", "gro"]\n')
    assert load(AgentConfig, {}, file=file, environ={}).no_offload == ("uso", "gro")
    assert load(AgentConfig, {}, environ={"OVERMESH_NO_OFFLOAD": "gso"}).no_offload == ("gso",)


@pytest.mark.parametrize(
    ("text", "cause", "fix"),
    [
        ("interfce = 'om0'", "unknown key 'interfce'", "did you mean 'interface'?"),
        ("nonsense = 1", "unknown key 'nonsense'", "known keys: state_dir"),
        ("port = 'x'", "port = 'x' is not right", "it takes a whole number"),
        ("port = true", "port = True is not right", "it takes a whole number"),
        ("endpoints = [1]", "endpoints", "it takes a list of strings"),
        (
            "no_offload = 'gso'",
            "no_offload",
            "it takes a list of 'tso' or 'uso' or 'gso' or 'gro' or 'avx512'",
        ),
        ("no_offload = ['lro']", "no_offload = ['lro'] is not right", "it takes a list of 'tso'"),
        ("log_format = 'xml'", "log_format", "it takes 'text' or 'json'"),
        ("port =", "is not TOML", "correct that line"),
    ],
)
def test_a_wrong_file_names_the_line_and_the_fix(tmp_path: Path, text: str, cause: str, fix: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(AgentConfig, {}, file=file, environ={})
    assert str(file) in caught.value.cause
    assert cause in caught.value.cause
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="OVERMESH_PORT: port = 'many'"):
        load(AgentConfig, {}, environ={"OVERMESH_PORT": "many"})


def test_a_file_that_was_named_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml can't be read"):
        load(AgentConfig, {}, file=tmp_path / "absent.toml", environ={})


def test_lanes_are_as_many_as_the_fastpath_takes() -> None:
    core = Path(__file__).parents[3] / "fastpath" / "core" / "src"
    [most] = re.findall(r"pub const MAX_LANES: u32 = (\d+);", (core / "peers.rs").read_text())
    assert int(most) == MAX_LANES
