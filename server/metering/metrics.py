"""What Prometheus scrapes: token and request counters read from the ledger at scrape, and the state of the engine.

Labels come from the configuration only, never from a request, so the number of series is bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.choice import Choice
from server.metering.ledger import Ledger

# The boundaries of OpenTelemetry's semantic conventions for generative AI.
DURATION = tuple(0.01 * 2**exponent for exponent in range(14))
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class EngineState(Protocol):
    """What is read from the engine."""

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""

    @property
    def kv_used_ratio(self) -> float:
        """Part of the cache in use, 0 to 1."""


class Latency:
    """The two histograms, of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the admission of a request to its first token.",
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the admission of a request to the end of its reply.",
            buckets=DURATION,
            registry=registry,
        )


class LedgerCollector(Collector):
    """The counters; configured skills are present from the start, at zero, so that rates see their first request."""

    def __init__(self, ledger: Ledger, skills: Callable[[], Iterable[str]], models: Callable[[], Iterable[str]]) -> None:
        self._ledger = ledger
        self._skills = skills
        self._models = models

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the ledger."""
        return _counters()

    def collect(self) -> Iterator[Metric]:
        """One family per table of totals."""
        totals = self._ledger.totals()
        tokens, requests = _counters()
        kinds = ("input", "cached", "output")
        zero = {(skill, model, kind): 0 for model in self._models() for skill in self._skills() for kind in kinds}
        for labels, value in {**zero, **totals.tokens}.items():
            tokens.add_metric(labels, value)
        for labels, value in totals.requests.items():
            requests.add_metric(labels, value)
        yield from (tokens, requests)


class EngineCollector(Collector):
    """Gauges of the engine, and what model and kernels it runs."""

    def __init__(
        self, engine: EngineState, model: Callable[[], dict[str, str]], choices: Callable[[], Sequence[Choice]]
    ) -> None:
        self._engine = engine
        self._model = model
        self._choices = choices

    def describe(self) -> Iterable[Metric]:
        """As `collect`: reading the engine costs nothing."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Each gauge as it is now."""
        engine = self._engine
        yield GaugeMetricFamily("secateur_requests_running", "Replies being generated.", engine.running)
        yield GaugeMetricFamily("secateur_requests_waiting", "Requests waiting for a slot.", engine.waiting)
        yield GaugeMetricFamily(
            "secateur_kv_cache_usage_ratio", "Part of the KV cache that running replies fill.", engine.kv_used_ratio
        )
        yield _info("secateur_model_info", "The model served, from its lineage.", [self._model()])
        choices = [{"subject": c.subject, "kernel": c.kernel, "reason": c.reason} for c in self._choices()]
        yield _info("secateur_runtime_info", "Each automatic choice, and why it was made.", choices)


class FeedbackState(Protocol):
    """What is read of visitors' ratings."""

    def totals(self) -> Mapping[tuple[str, str], int]:
        """(skill, rating) -> how often it was given."""
        ...


class FeedbackCollector(Collector):
    """Ratings, from their own file at scrape."""

    def __init__(self, feedback: FeedbackState, skills: Callable[[], Iterable[str]]) -> None:
        self._feedback = feedback
        self._skills = skills

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_ratings()]

    def collect(self) -> Iterator[Metric]:
        """Each rating of each skill, zeros included."""
        family = _ratings()
        zero = {(skill, rating): 0 for skill in self._skills() for rating in ("up", "down")}
        for labels, value in {**zero, **self._feedback.totals()}.items():
            family.add_metric(labels, value)
        yield family


def _ratings() -> CounterMetricFamily:
    return CounterMetricFamily(
        "secateur_feedback", "Ratings that visitors gave to replies.", labels=("skill", "rating")
    )


def _counters() -> tuple[CounterMetricFamily, CounterMetricFamily]:
    return (
        CounterMetricFamily(
            "secateur_tokens",
            "Tokens from the ledger; cached tokens are a part of input.",
            labels=("skill", "model", "type"),
        ),
        CounterMetricFamily(
            "secateur_requests", "Replies settled in the ledger.", labels=("skill", "model", "outcome")
        ),
    )


def _info(name: str, text: str, rows: Sequence[dict[str, str]]) -> GaugeMetricFamily:
    """A gauge that is always 1 and says something by its labels."""
    family = GaugeMetricFamily(name, text, labels=tuple(rows[0]) if rows else ())
    for row in rows:
        family.add_metric(tuple(row.values()), 1)
    return family
