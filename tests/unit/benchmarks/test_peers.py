import tomllib
from pathlib import Path

import pytest

from benchmarks import overmesh, peers
from benchmarks.overlay import CONTENDERS


def test_names_are_apart_and_the_gates_have_theirs() -> None:
    from benchmarks.verdict import GATES

    names = [kind.name for kind in CONTENDERS]
    assert len(set(names)) == len(names)
    gated = {kind.name for kind in CONTENDERS if kind.gate}
    assert {name for gate in GATES for name in (gate.name, gate.base)} <= gated


@pytest.mark.parametrize("suite", ["", "chacha", "aes"])
def test_a_sealed_file_has_the_keys_and_a_plain_one_has_none(suite: str, tmp_path: Path) -> None:
    contender = overmesh.Overmesh(3, tmp_path)
    contender.suite = suite
    config = tomllib.loads(contender.config(0, "a.key", "PUBLIC", "10.99.0.2"))
    peer = config["peer"][0]
    assert peer["prefixes"] == ["10.200.3.2/32", "fd00:200:3::2/128"]
    assert ("private_key_file" in config, peer.get("suite", "")) == (bool(suite), suite)
    assert "lanes" not in config


def test_lanes_are_asked_for_on_both_sides_of_a_peer(tmp_path: Path) -> None:
    contender = overmesh.OvermeshAesLanes(3, tmp_path)
    config = tomllib.loads(contender.config(0, "a.key", "PUBLIC", "10.99.0.2"))
    assert (config["lanes"], config["peer"][0]["lanes"]) == (2, 2)


def test_what_could_not_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BIN", tmp_path)
    contender = peers.Gotatun(1, tmp_path)
    contender.program = str(tmp_path / "gotatun")
    assert contender.missing() == f"no {tmp_path}/gotatun"
    (tmp_path / "gotatun.failed").write_text("not built in 600 s\n")
    assert contender.missing() == "not built in 600 s"


@pytest.mark.parametrize(
    ("version", "good"),
    [("1.9.7", False), ("1.11.1", False), ("1.12.0", True), ("9c5d7016-2026-08-21", True)],
)
def test_a_nebula_without_offloads_is_not_measured(
    version: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against that one the gates would be met for nothing."""
    program = tmp_path / "nebula"
    program.write_text(f"#!/bin/sh\necho Version: {version}\n")
    program.chmod(0o755)
    contender = peers.Nebula(1, tmp_path)
    contender.program = str(program)
    assert bool(contender.missing()) is not good
    assert ("older than its offloads" in contender.missing()) is not good


def test_no_two_contenders_want_one_port(tmp_path: Path) -> None:
    taken = [
        contender.port + lane
        for contender in (kind(number, tmp_path) for number, kind in enumerate(CONTENDERS, 1))
        for lane in range(getattr(contender, "lanes", 0) or 1)
    ]
    assert len(set(taken)) == len(taken)
