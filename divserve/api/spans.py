"""An OpenTelemetry span per decoded request, beside vLLM's ``llm_request``.

vLLM's span has the timings of one engine request and ends where the engine ends it; this one has
what only the front end knows: the method, its mean figures, and how the request ended. Both are
children of the ``traceparent`` that the client sent. They are sent to ``--otlp-traces-endpoint``;
without it nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.datastructures import Headers

from divserve.api.instrumentation import Sink
from divserve.api.record import Record
from divserve.http.paths import COMPLETIONS

__all__ = ["span_sink"]

NAME = "divserve.request"
NS_PER_S = 1_000_000_000


def span_sink(provider: Any = None) -> Sink:
    """Returns a sink that writes a span for every request that decodes.

    Args:
        provider: a ``TracerProvider``; by default the one that vLLM has installed.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = (provider or trace.get_tracer_provider()).get_tracer("divserve")
    propagator = TraceContextTextMapPropagator()

    def end(record: Record, route: str) -> None:
        if record.method is None:
            return
        span = tracer.start_span(
            NAME,
            context=propagator.extract(dict(Headers(scope=record.scope))),
            kind=trace.SpanKind.SERVER,
            start_time=record.started_ns,
            attributes=attributes(record, route),
        )
        if record.outcome == "failed":
            span.set_status(trace.StatusCode.ERROR)
        span.end(record.started_ns + int(record.duration * NS_PER_S))

    return end


def attributes(record: Record, route: str) -> dict[str, Any]:
    """Attributes under OpenTelemetry's names where there are any, else ours; unknown ones are
    omitted."""
    found = {
        "gen_ai.operation.name": "text_completion" if route == COMPLETIONS else "chat",
        "gen_ai.request.model": record.model,
        "gen_ai.response.id": record.answer_id,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.usage.input_tokens": sum(record.prompt_tokens.values()),
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.route": route,
        "http.response.status_code": record.shown_status,
        "error.type": (record.error or {}).get("type"),
        "divserve.method": record.method,
        "divserve.outcome": record.outcome,
        "divserve.applied_steps": record.steps,
        "divserve.guide_prompt_tokens": record.guide_tokens,
        "divserve.time_to_first_token": record.ttft,
        **{f"divserve.mean.{name}": mean for name, mean in record.means().items()},
    }
    return {
        name: value
        for name, value in found.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
