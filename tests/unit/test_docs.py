"""What the documents list is what there is."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric

from overmesh.agent.metrics import numbers
from overmesh.controller.serving.metrics import Metrics, state, tallies
from overmesh.proto import agent_pb2
from tests.unit.controller.lab import mesh

DOCS = Path(__file__).parents[2] / "docs"


def names(metrics: CollectorRegistry | list[Metric]) -> set[str]:
    found = list(metrics.collect() if isinstance(metrics, CollectorRegistry) else metrics)
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in found
        if metric.name.startswith("overmesh_")
    }


async def test_the_metrics_that_are_listed_are_those_there_are(tmp_path: Path) -> None:
    async with mesh(tmp_path) as here:
        controller = names(Metrics().registry) | names(
            [*state(here.mirror, here.agents, here.lease), *tallies(here.mirror)]
        )
    status = agent_pb2.StatusReply(peers=[agent_pb2.Peer(name="b")])
    agent = names(list(numbers(status))) | {"overmesh_apply_seconds"}
    listed = set(re.findall(r"`(overmesh_\w+)`", (DOCS / "metrics.md").read_text()))
    assert listed == controller | agent
