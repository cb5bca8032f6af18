"""Spans from a join to the last ack, for OpenTelemetry; off unless a setting names a collector.

    join ──traceparent in the call──► Join ► store txn ──traceparent in the delta──► apply, everywhere ► ack

While it is off OpenTelemetry is not imported, and a span costs one comparison. The context travels as W3C
Trace Context has it (https://www.w3.org/TR/trace-context/), in gRPC metadata and in the map's deltas.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from overmesh.errors import ConfigError

TRACEPARENT = "traceparent"

# One process is one part, and its spans go to one place.
_tracer: Any = None


@contextmanager
def tracing(endpoint: str, part: str, exporter: Any = None) -> Iterator[None]:
    """Send the spans of a block to a collector; what is left goes out at its end.

    Args:
        endpoint: of the collector, OTLP over HTTP, like http://192.0.2.9:4318; empty: no spans.
        part: "controller" or "agent".
        exporter: takes the spans in place of a collector.

    Raises:
        ConfigError: not a URL, or OpenTelemetry is not installed.

    """
    global _tracer  # noqa: PLW0603
    if not endpoint:
        yield
        return
    provider = _provider(endpoint, part, exporter)
    _tracer = provider.get_tracer("overmesh")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def _provider(endpoint: str, part: str, exporter: Any) -> Any:
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(
            f"trace: {endpoint!r} is not a URL", "say where OTLP over HTTP is taken: http://host:4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise ConfigError("trace: OpenTelemetry is not installed", "install overmesh[trace]") from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"overmesh-{part}"}))
    goal = exporter or OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(goal))
    return provider


def on() -> bool:
    """Tell whether spans go anywhere."""
    return _tracer is not None


@contextmanager
def span(name: str, parent: str = "", **attributes: str | int | float) -> Iterator[None]:
    """Time a block.

    Args:
        name: what is done.
        parent: traceparent of what it is part of; empty: the span around this one, or a trace of its own.
        attributes: with whom, by the names of log fields.

    """
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, context=_context(parent), attributes=attributes):
        yield


def begin(name: str, parent: str = "", **attributes: str | int | float) -> Any:
    """Begin a span that ends elsewhere (`.end()`); None while spans go nowhere."""
    return _tracer and _tracer.start_span(name, context=_context(parent), attributes=attributes)


def current() -> str:
    """Return the traceparent of the span around this; empty when there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")


def metadata() -> list[tuple[str, str]]:
    """Return what a gRPC call carries so that the other end's spans are part of this one."""
    return [(TRACEPARENT, parent)] if (parent := current()) else []


def parent_in(metadata: Mapping[str, Any]) -> str:
    """Return the traceparent that a call carried, or an empty string."""
    return str(metadata.get(TRACEPARENT, ""))


def _context(parent: str) -> Any:
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
