"""OpenTelemetry spans of the public listener's requests, exported by OTLP over HTTP; needs the extra `otel`.

Spans hold ids, names, counts and times, never text of prompts or replies, keys or tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from server.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Traces(Protocol):
    """A destination of spans."""

    def span(self, name: str, headers: Mapping[str, str]) -> Any:
        """A context manager for one span; it yields a dict whose entries become the span's attributes."""

    def close(self) -> None:
        """Export the remaining spans."""


class NoTraces:
    """Discards spans."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield a dict that is discarded."""
        yield {}

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
            try:
                yield attributes
            finally:
                span.update_name(str(attributes.pop("name", name)))
                span.set_attributes(attributes)

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
