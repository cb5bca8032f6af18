import os
from pathlib import Path

import pytest

from overmesh.agent import preflight
from overmesh.agent.preflight import lanes, possible_modes, suites
from overmesh.config import AgentConfig
from overmesh.errors import ConfigError
from overmesh.model import Suite

BOTH = (Suite.CHACHA, Suite.AES)
X86 = "processor\t: 0\nflags\t\t: fpu vme{} avx\nbugs\t\t: aes_made_up\n"
ARM64 = "processor\t: 0\nFeatures\t: fp asimd{} pmull\n"


@pytest.mark.parametrize(
    ("listed", "offered"),
    [
        (X86.format(" aes"), BOTH),
        (X86.format(""), BOTH[:1]),
        (X86.format(" vaes"), BOTH[:1]),
        (ARM64.format(" aes"), BOTH),
        (ARM64.format(""), BOTH[:1]),
        ("", BOTH[:1]),
    ],
)
def test_aes_is_offered_where_the_processor_has_it(
    listed: str, offered: tuple[Suite, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(preflight, "_CPU_INFO", file)
    assert suites() == BOTH[:1]
    file.write_text(listed)
    assert suites() == offered


@pytest.mark.parametrize(
    ("cores", "configured", "wanted"),
    [(1, 0, 1), (3, 0, 1), (4, 0, 2), (9, 0, 4), (64, 0, 8), (2, 5, 5), (64, 1, 1)],
)
def test_lanes(cores: int, configured: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert lanes(AgentConfig(lanes=configured)) == wanted


@pytest.mark.parametrize("wrong", [-1, 65])
def test_lanes_that_can_not_be(wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"lanes = {wrong} can't be"):
        lanes(AgentConfig(lanes=wrong))


@pytest.mark.parametrize(("port", "count"), [(-5, 1), (65536, 1), (65535, 2)])
def test_ports_that_can_not_be(port: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"port = {port} can't be with lanes = {count}"):
        possible_modes(AgentConfig(port=port, lanes=count))
