"""The control plane's benchmark in small, so that it cannot rot: a hundred agents on real etcd."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.control.rig import controllers
from benchmarks.control.scenario import Scenario, Size
from tests.etcd import needs_etcd


@pytest.mark.timeout(120)
def test_a_hundred_agents_and_the_loss_of_their_controller(tmp_path: Path) -> None:
    needs_etcd()
    size = Size(agents=100, joins=10, changes=1, phases=("change", "failover"))
    with controllers(tmp_path, 2, "etcd") as running:
        row = asyncio.run(Scenario(running, size, tmp_path).run())
    # Every stream was resumed, every digest that was looked at was right (else `run` raises).
    assert row["failover_snapshots"] == 0
    assert row["change_encoded"] == 1
