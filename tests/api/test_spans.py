"""The span of a decoded request: its parent, its times and the figures of its method."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.api.record import Record
from divserve.api.report import ChoiceReport
from divserve.api.texts import undecoded
from divserve.decoding import METHODS, Stack

sdk = pytest.importorskip("opentelemetry.sdk.trace")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROUTE = "/v1/chat/completions"


def exported(record: Record, route: str = ROUTE) -> list[Any]:
    """The spans that are made from the record of a request."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from divserve.api.spans import span_sink

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span_sink(provider)(record, route)
    return list(exporter.get_finished_spans())


def guided_record(**fields: Any) -> Record:
    """A request of two tokens."""
    stack = Stack(METHODS["entropy_temperature"](method="entropy_temperature"))
    report = ChoiceReport(stack, False, 1.0, 0, undecoded)
    report.steps, report.sums = 2, {"entropy": 3.0, "temperature": float("inf")}
    header = f"00-{TRACE}-{PARENT}-01".encode()
    return Record(
        scope={"type": "http", "headers": [(b"traceparent", header)]},
        method="entropy_temperature",
        model="smol",
        prompt_tokens={0: 7},
        completion_tokens=2,
        finish_reasons=["stop"],
        reports=[report],
        duration=1.5,
        **fields,
    )


def test_the_figures_of_the_method() -> None:
    record = guided_record(status=200, complete=True)
    (span,) = exported(record)
    assert span.name == "divserve.request"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.start_time == record.started_ns
    assert span.end_time - span.start_time == 1_500_000_000
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "smol",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "divserve.method": "entropy_temperature",
        "divserve.outcome": "ok",
        "divserve.applied_steps": 2,
        "divserve.mean.entropy": 1.5,
    }
    assert span.status.is_unset


def test_failures_are_marked() -> None:
    error = {"type": "server_error", "code": "lockstep_lost"}
    (span,) = exported(guided_record(status=500, complete=True, error=error), "/v1/completions")
    assert not span.status.is_ok
    assert not span.status.is_unset
    assert span.attributes["error.type"] == "server_error"
    assert span.attributes["gen_ai.operation.name"] == "text_completion"


def test_requests_that_decode_nothing_have_no_span() -> None:
    assert exported(Record(scope={"type": "http", "headers": []}, status=200)) == []
