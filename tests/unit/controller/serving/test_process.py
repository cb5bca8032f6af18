"""How a controller's process is set up."""

import os
import subprocess
import sys

import pytest

from overmesh.controller.serving import process


@pytest.mark.parametrize(
    ("said", "settled"), [(None, "-event_engine_listener"), ("", ""), ("other", "other")]
)
def test_how_grpc_reads_is_settled_unless_the_environment_says_it(
    said: str | None, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", said or "")
    if said is None:
        monkeypatch.delenv("GRPC_EXPERIMENTS")
    process.settle_grpc()
    assert os.environ["GRPC_EXPERIMENTS"] == settled


def test_grpc_is_not_loaded_before_that() -> None:
    modules = "sys, overmesh.cli.controller, overmesh.controller.serving.process"
    loads = f"import {modules}; print('grpc' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
