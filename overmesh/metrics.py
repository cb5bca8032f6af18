"""Serves numbers to Prometheus: http://ADDRESS:PORT/metrics, in its text format.

    scrape ──HTTP thread──► Gathered ──► the event loop counts what there is ──► text

Labels go by the names that log fields have: network, node, controller, result, reason.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from overmesh.errors import ConfigError

GATHER_TIMEOUT = 5.0

_log = logging.getLogger("overmesh.metrics")


class Gathered(Collector):
    """Numbers that are looked up when somebody asks, on the event loop that owns them.

    Args:
        gather: returns them.

    """

    def __init__(self, gather: Callable[[], Awaitable[Iterable[Metric]]]) -> None:
        self._gather = gather
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are known once they are gathered, and the loop is busy registering."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return them; called by the HTTP thread."""
        return asyncio.run_coroutine_threadsafe(self._all(), self._loop).result(GATHER_TIMEOUT)

    async def _all(self) -> Iterable[Metric]:
        return await self._gather()


def registry() -> CollectorRegistry:
    """Return a registry that knows this process: CPU seconds, memory, file descriptors."""
    fresh = CollectorRegistry()
    ProcessCollector(registry=fresh)
    return fresh


def gauge(name: str, help_: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    """Return a gauge with a value for each combination of labels."""
    return _filled(GaugeMetricFamily(name, help_, labels=labels), values)


def counter(name: str, help_: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    """Return a counter (its name without `_total`) with a value for each combination of labels."""
    return _filled(CounterMetricFamily(name, help_, labels=labels), values)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


@contextmanager
def served(at: str, numbers: CollectorRegistry) -> Iterator[None]:
    """Serve a registry for the length of a block; "off": do not.

    A port that another program has is said and no reason to stop: packets matter more.

    Args:
        at: address:port, or "off".
        numbers: what to serve.

    Raises:
        ConfigError: `at` is neither.

    """
    if at == "off":
        yield
        return
    host, port = _address(at)
    try:
        server, thread = start_http_server(port, host, numbers)
    except OSError as error:
        _log.warning("metrics are not served", extra={"address": at, "reason": error.strerror})
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _address(at: str) -> tuple[str, int]:
    host, _, port = at.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"metrics: {at!r} is not an address and port", "say 127.0.0.1:7444, or off")
    return host.strip("[]"), int(port)
