"""A collector: takes spans over OTLP/gRPC, as any tracing system does."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

WAIT_S = 30
"""Exporters send what they have every five seconds."""


class Collector:
    """The spans that have arrived, as dictionaries."""

    def __init__(self) -> None:
        self.url = ""
        self._spans: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def take(self, request: Any, _: Any) -> Any:
        """An ``Export`` call."""
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans += [plain(span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace: str, names: set[str]) -> dict[str, dict[str, Any]]:
        """The spans of a trace by name, once all of these have arrived.

        Raises:
            TimeoutError: one has not arrived; the message lists those that have.
        """
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with self._lock:
                found = {span["name"]: span for span in self._spans if span["trace"] == trace}
                names_seen = sorted({span["name"] for span in self._spans})
            if names <= found.keys():
                return found
            time.sleep(0.2)
        raise TimeoutError(f"{trace}: {sorted(found)} of {sorted(names)}; in all {names_seen}")

    def count(self, trace: str) -> Counter[str]:
        """How many spans of each name the trace has by now."""
        with self._lock:
            return Counter(span["name"] for span in self._spans if span["trace"] == trace)


def plain(span: Any) -> dict[str, Any]:
    """A span as a plain dictionary."""
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "parent": span.parent_span_id.hex(),
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "kind": span.kind,
        "status": span.status.code,
        **{entry.key: value(entry.value) for entry in span.attributes},
    }


def value(given: Any) -> Any:
    """The value of an attribute."""
    kind = given.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in given.array_value.values]
    return getattr(given, kind)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector on a free port of this machine."""
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    collector = Collector()
    method = grpc.unary_unary_rpc_method_handler(
        collector.take,
        request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
        response_serializer=trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": method}),)
    )
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
