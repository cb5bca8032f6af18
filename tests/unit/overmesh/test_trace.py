import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from overmesh import trace
from overmesh.errors import ConfigError

COLLECTOR = "http://127.0.0.1:4318"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    assert not trace.on()


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_the_other_end_of_a_call_goes_on_with_the_trace(spans: InMemorySpanExporter) -> None:
    with trace.tracing(COLLECTOR, "controller", spans):
        with trace.span("join", node="a"):
            carried = trace.metadata()
        parent = trace.parent_in(dict(carried))
        with trace.span("Join", parent), trace.span("store txn"):
            pass
    found = named(spans)
    assert found["Join"].parent.span_id == found["join"].context.span_id  # type: ignore[union-attr]
    assert found["store txn"].parent.span_id == found["Join"].context.span_id  # type: ignore[union-attr]
    assert len({span.context.trace_id for span in found.values()}) == 1
    assert dict(found["join"].attributes or {}) == {"node": "a"}
    assert found["join"].resource.attributes["service.name"] == "overmesh-controller"


def test_a_span_may_end_elsewhere(spans: InMemorySpanExporter) -> None:
    with trace.tracing(COLLECTOR, "controller", spans):
        trace.begin("converge", revision=7).end()
    assert named(spans)["converge"].attributes == {"revision": 7}


def test_nonsense_from_the_network_begins_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    with trace.tracing(COLLECTOR, "controller", spans), trace.span("Join", "00-nonsense"):
        pass
    assert named(spans)["Join"].parent is None


def test_off_there_is_nothing() -> None:
    with trace.tracing("", "agent"), trace.span("join"):
        assert not trace.on()
        assert trace.metadata() == []
        assert trace.begin("converge") is None


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a URL"), trace.tracing("collector:4318", "agent"):
        pass


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError) as refused, trace.tracing(COLLECTOR, "agent"):
        pass
    assert refused.value.fix == "install overmesh[trace]"
