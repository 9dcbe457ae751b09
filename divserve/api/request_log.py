"""One structured log line per request, if enabled with ``--log-format``.

It replaces uvicorn's access log. Prompts are included only with ``--log-prompts``; error messages
never are, because they may quote what the client sent.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from divserve.api.instrumentation import Sink
from divserve.api.record import Record
from divserve.http.log_text import escaped

__all__ = ["LogFormat", "request_log"]

LogFormat = Literal["json", "console"]

PROBES = frozenset({"/health", "/live", "/ready", "/ping", "/load", "/version", "/metrics"})
"""Routes that machines request every few seconds; logged only when something is wrong."""

LEVELS = {"ok": "info", "aborted": "info", "client_error": "warning", "failed": "error"}


def request_log(form: LogFormat, stream: TextIO | None = None) -> Sink:
    """Returns a sink that writes the lines.

    Args:
        form: ``json``, or ``console`` for people.
        stream: where to; standard output by default.
    """
    stream = stream or sys.stdout
    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
    )
    # This logger has its own processors and writer: other users of structlog keep their settings.
    logger: Any = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([_escaped] if form == "console" else []),
            renderer,
        ],
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )

    def write(record: Record, route: str) -> None:
        if route in PROBES and record.outcome == "ok":
            return
        getattr(logger, LEVELS[record.outcome])("request", **fields(record, route))

    return write


def fields(record: Record, route: str) -> dict[str, Any]:
    """The fields of a line; every line has the same ones, except for the prompt."""
    error = record.error or {}
    found = {
        "pid": os.getpid(),
        "request_id": record.request_id,
        "key": record.key_name,
        "route": route,
        "http_method": record.scope["method"],
        "status": record.shown_status,
        "outcome": record.outcome,
        "model": record.model,
        "method": record.method,
        "stream": record.streams,
        "prompt_tokens": sum(record.prompt_tokens.values()) if record.prompt_tokens else None,
        "guide_tokens": record.guide_tokens,
        "completion_tokens": record.completion_tokens,
        "applied_steps": record.steps if record.reports else None,
        "ttft_ms": None if record.ttft is None else _ms(record.ttft),
        "duration_ms": _ms(record.duration),
        "finish_reason": _joined(record.finish_reasons),
        "mean": {name: _finite(mean) for name, mean in record.means().items()} or None,
        "error_type": error.get("type"),
        "error_code": error.get("code"),
    }
    return found if record.prompt is None else {**found, "prompt": record.prompt}


def _escaped(logger: Any, name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Escapes the texts; what is no text is shown as Python writes it, which escapes too."""
    return {k: escaped(v) if isinstance(v, str) else v for k, v in event.items()}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _finite(mean: float) -> float | None:
    """JSON has no infinity, which `look_back` reports where there is nothing to compare with."""
    return round(mean, 6) if math.isfinite(mean) else None


def _joined(reasons: list[str]) -> str | None:
    """A single word where all choices ended alike."""
    return ",".join(dict.fromkeys(reasons)) or None
