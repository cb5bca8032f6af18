"""The numbers of a controller, for Prometheus (docs/metrics.md).

What is counted on the way is kept here; what can be looked up is gathered when somebody asks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from prometheus_client import Counter, Histogram, Metric

from overmesh import __version__, metrics
from overmesh.controller.agents import Agents
from overmesh.controller.fleet.lease import Lease
from overmesh.controller.mirror import Mirror
from overmesh.controller.peermap import Tally
from overmesh.controller.view import NetworkView
from overmesh.metrics import counter, gauge

# From a store in memory to one that is in trouble.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TALLIED = {
    "encoded": ("overmesh_records_encoded", "Records encoded for agents: once each time that one changes"),
    "deltas": ("overmesh_deltas_sent", "Changes of the map sent to an agent"),
    "snapshots": ("overmesh_snapshots_sent", "Whole maps sent to an agent"),
    "heartbeats": ("overmesh_heartbeats_sent", "Times that a quiet agent was told where the map stands"),
    "collapsed": ("overmesh_changes_collapsed", "Changes that an agent got in one delta with later ones"),
    "acks": ("overmesh_acks", "Times that an agent said what it holds"),
    "misses": ("overmesh_digest_misses", "Times that this was not what it should be"),
}
assert _TALLIED.keys() == {field.name for field in fields(Tally)}


class Metrics:
    """What is counted on the way."""

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self._store = Histogram(
            "overmesh_store_seconds",
            "Time that the store took",
            ("operation", "result"),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._calls = Counter(
            "overmesh_calls",
            "Calls answered: ok, or an error's name",
            ("method", "result"),
            registry=self.registry,
        )
        self._joins = Counter(
            "overmesh_joins",
            "Times that a host asked to join, by what came of it",
            ("result",),
            registry=self.registry,
        )
        self._acks = Histogram(
            "overmesh_ack_seconds", "From a change sent to its ack", registry=self.registry, buckets=_SECONDS
        )

    def store_took(self, operation: str, result: str, seconds: float) -> None:
        """Note what the store was asked for."""
        self._store.labels(operation, result).observe(seconds)

    def answered(self, method: str, result: str) -> None:
        """Note a call and its result."""
        self._calls.labels(method, result).inc()
        if method == "Join" and result != "ok":
            self.joined(result)

    def joined(self, result: str) -> None:
        """Note what came of a wish to join: new, again, or an error's name.

        A host that waits for approval asks again and again, and counts each time (ApprovalPendingError).
        """
        self._joins.labels(result).inc()

    def acked(self, seconds: float) -> None:
        """Note how long an agent took to ack."""
        self._acks.observe(seconds)

    def watch(self, mirror: Mirror, agents: Agents, lease: Lease) -> None:
        """Have the state of these parts gathered from now on; call it on the event loop that owns them."""

        async def gather() -> Iterable[Metric]:
            return (*state(mirror, agents, lease), *tallies(mirror))

        self.registry.register(metrics.Gathered(gather))


def state(mirror: Mirror, agents: Agents, lease: Lease) -> Iterable[Metric]:
    """Yield how things stand."""

    def each(name: str, help_: str, of: Callable[[NetworkView], float]) -> Metric:
        return gauge(name, help_, {(view.name,): of(view) for view in mirror.networks}, "network")

    yield gauge("overmesh_controller_info", "Which version this is", {(__version__,): 1}, "version")
    yield gauge("overmesh_store_revision", "Of the store, as far as it is known here", {(): mirror.revision})
    yield gauge("overmesh_store_silent_seconds", "Since the store was heard of", {(): lease.silence})
    yield gauge("overmesh_controllers", "Controllers of the mesh", {(): len(mirror.held("controllers"))})
    yield each("overmesh_nodes", "Members", lambda view: len(mirror.held("nodes", view.name)))
    yield each("overmesh_map_revision", "Of the map", lambda view: view.map.head.revision)
    yield each("overmesh_agents", "Agents connected here", lambda view: agents.count(view.name))
    lags = {view.name: _lags(view, agents) for view in mirror.networks}
    yield each("overmesh_agents_behind", "Those that do not hold the head", lambda view: len(lags[view.name]))
    yield each(
        "overmesh_agent_lag_revisions",
        "Revisions that the last of them has still to get",
        lambda view: max(lags[view.name], default=0),
    )


def _lags(view: NetworkView, agents: Agents) -> Sequence[int]:
    head = view.map.head.revision
    return [head - behind.acked for behind in agents.behind(view.name, head)]


def tallies(mirror: Mirror) -> Iterable[Metric]:
    """Yield what was counted on the maps and their streams."""
    for field, (name, help_) in _TALLIED.items():
        yield counter(
            name, help_, {(view.name,): getattr(view.map.tally, field) for view in mirror.networks}, "network"
        )
