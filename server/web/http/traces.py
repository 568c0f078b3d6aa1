"""A span for each request of the public listener, sent by OTLP over HTTP where the settings name an address.

Needs the extra `otel`. Spans hold ids, names, counts and times; never a word of a prompt or reply, a key or a token.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from server.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Traces(Protocol):
    """Where spans go."""

    def span(self, name: str, headers: Mapping[str, str]) -> Any:
        """A context that is one span; within, a dict whose entries become its attributes."""

    def close(self) -> None:
        """Send what is left."""


class NoTraces:
    """Nowhere."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Attributes that nobody reads."""
        yield {}

    def close(self) -> None:
        """Nothing is left."""


class OpenTelemetry:
    """Sends spans by `exporter`, in batches and in a thread; a caller's `traceparent` is their parent."""

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
        """A server span; an exception's name is noted, its text is not."""
        # Of what a caller sends along only the two numbers are passed on: `tracestate` is text.
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
        """Send what is left."""
        self._provider.shutdown()


def open_traces(endpoint: str | None) -> Traces:
    """Where spans go for this setting; raises ConfigError if the extra is not installed."""
    if endpoint is None:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError("`traces` needs the extra: pip install 'secateur[otel]'") from None
    return OpenTelemetry(OTLPSpanExporter(endpoint))
