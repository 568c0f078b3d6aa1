"""OpenTelemetry spans of the public listener's requests and their replies, exported by OTLP over HTTP (extra `otel`).

Spans hold ids, names, counts and times, never text of prompts or replies, keys or tokens.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from server.errors import ConfigError
from server.metering.meter import Ended
from server.web.logs import TRACE_ID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Traces(Protocol):
    """A destination of spans."""

    def span(self, name: str, headers: Mapping[str, str]) -> Any:
        """A context manager for one span; it yields a dict whose entries become the span's attributes."""

    def ended(self, reply: Ended) -> None:
        """Add the phases of a finished reply to the current span."""

    def close(self) -> None:
        """Export the remaining spans."""


class NoTraces:
    """Discards spans."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield a dict that is discarded."""
        yield {}

    def ended(self, reply: Ended) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OpenTelemetry:
    """Exports spans in batches from a thread; a client's `traceparent` header becomes their parent."""

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": "secateur"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("secateur")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """A server span, renamed to the attribute `name` at its end; exceptions are not recorded."""
        # `tracestate` is not passed on: it is the client's own text.
        parent = self._propagator.extract({"traceparent": headers.get("traceparent", "")})
        attributes: dict[str, Any] = {}
        with self._tracer.start_as_current_span(
            name, parent, self._kind, record_exception=False, set_status_on_exception=False
        ) as span:
            shown = TRACE_ID.set(f"{span.get_span_context().trace_id:032x}")
            try:
                yield attributes
            finally:
                TRACE_ID.reset(shown)
                span.update_name(str(attributes.pop("name", name)))
                span.set_attributes(attributes)

    def ended(self, reply: Ended) -> None:
        """Add child spans `ledger` (the row's opening), `queue`, `prefill` and `decode` as far as the reply came."""
        begun = time.time_ns() - int(reply.duration * 1e9)
        queued = None if reply.waited is None else reply.opened + reply.waited
        phases = {
            "ledger": (0.0, reply.opened),
            "queue": (reply.opened, queued),
            "prefill": (queued, reply.first_token),
        }
        phases["decode"] = (reply.first_token, reply.duration)
        for name, (start, end) in phases.items():
            if start is not None and end is not None:
                span = self._tracer.start_span(name, start_time=begun + int(start * 1e9))
                span.end(begun + int(max(start, end) * 1e9))

    def close(self) -> None:
        """Export the remaining spans."""
        self._provider.shutdown()


def open_traces(endpoint: str | None) -> Traces:
    """Spans for the setting `traces`, discarded if it is None; raises ConfigError without the extra."""
    if endpoint is None:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError("`traces` needs the extra: pip install 'secateur[otel]'") from None
    return OpenTelemetry(OTLPSpanExporter(endpoint))
