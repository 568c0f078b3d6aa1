"""What Prometheus scrapes: token and request counters read from the ledger at scrape, and the state of the engine.

Labels come from the configuration only, never from a request, so the number of series is bounded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.engine.choice import Choice
from server.metering.ledger import Ledger
from server.metering.records import KINDS, Limits, Period, Spent


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


class Scope(Protocol):
    """What the labels may be: the configured skills with their budgets, and the models loaded since the start."""

    def limits(self) -> dict[str, Limits]:
        """By skill, in the order of the configuration."""
        ...

    def models(self) -> Iterable[str]:
        """Names of models."""
        ...


class LedgerCollector(Collector):
    """The counters; configured skills are present from the start, at zero, so that rates see their first request."""

    def __init__(self, ledger: Ledger, scope: Scope) -> None:
        self._ledger = ledger
        self._scope = scope

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the ledger."""
        return (*_counters(), *_budgets([], {}))

    def collect(self) -> Iterator[Metric]:
        """One family per table of totals, the budgets, and how the ledger does."""
        ledger, limits = self._ledger, self._scope.limits()
        totals = ledger.totals()
        tokens, requests = _counters()
        zero: dict[tuple[str, str, str], int] = {}
        zero.update((labels, 0) for labels in product(limits, self._scope.models(), KINDS))
        for labels, value in {**zero, **totals.tokens}.items():
            tokens.add_metric(labels, value)
        for labels, value in totals.requests.items():
            requests.add_metric(labels, value)
        yield from (tokens, requests, *_budgets(ledger.spent(), limits))
        yield _info("secateur_ledger_info", "Whose rows these are.", [{"instance_name": ledger.instance}])
        yield GaugeMetricFamily("secateur_ledger_writable", "1 while the ledger can be written.", int(ledger.writable))
        yield SummaryMetricFamily(
            "secateur_ledger_commit_seconds",
            "Durable transactions of the ledger.",
            count_value=ledger.commits,
            sum_value=ledger.commit_seconds,
        )


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


class VllmCollector(Collector):
    """The gauges and counters that dashboards and autoscalers know by vLLM's names; promtool dislikes the colon."""

    def __init__(self, ledger: Ledger, engine: EngineState, model: Callable[[], str]) -> None:
        self._ledger = ledger
        self._engine = engine
        self._model = model

    def describe(self) -> Iterable[Metric]:
        """None: names are unique by their prefix."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """As vLLM's v1 engine names them."""
        totals, engine, current = self._ledger.totals(), self._engine, self._model()
        gauges = (
            ("num_requests_running", "Requests in execution.", engine.running),
            ("num_requests_waiting", "Requests waiting.", engine.waiting),
            ("kv_cache_usage_perc", "KV-cache usage, 1 is full.", engine.kv_used_ratio),
        )
        for name, text, value in gauges:
            yield _of_model(GaugeMetricFamily(f"vllm:{name}", text, labels=("model_name",)), {current: value})
        for name, kind in (("prompt_tokens", "input"), ("generation_tokens", "output")):
            sums = Counter({current: 0})
            for (_, model, which), count in totals.tokens.items():
                sums[model] += count if which == kind else 0
            yield _of_model(
                CounterMetricFamily(f"vllm:{name}", f"Number of {kind} tokens.", labels=["model_name"]), sums
            )
        success = CounterMetricFamily(
            "vllm:request_success", "Requests that ended well.", labels=("model_name", "finished_reason")
        )
        ended: Counter[tuple[str, str]] = Counter({(current, reason): 0 for reason in FINISHED.values()})
        for (_, model, outcome), count in totals.requests.items():
            if outcome in FINISHED:
                ended[model, FINISHED[outcome]] += count
        for labels, count in ended.items():
            success.add_metric(labels, count)
        yield success


FINISHED = {"stop": "stop", "length": "length", "budget": "length", "client_gone": "abort"}


def _of_model(family: Metric, values: dict[str, float] | Counter[str]) -> Metric:
    """`family` with one sample for each model."""
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


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


def _budgets(spent: Iterable[Spent], limits: dict[str, Limits]) -> tuple[Metric, ...]:
    """What each skill may use of the current day and month, where it has a limit, has used and has reserved."""
    labels = ("skill", "period")
    limit = GaugeMetricFamily("secateur_budget_limit_tokens", "Tokens that a skill may use.", labels=labels)
    used = GaugeMetricFamily("secateur_budget_used_tokens", "Of these, used by closed replies.", labels=labels)
    reserved = GaugeMetricFamily("secateur_budget_reserved_tokens", "Reserved by replies under way.", labels=labels)
    known = {(row.skill, "day" if len(row.period) == len("YYYY-MM-DD") else "month"): row for row in spent}
    both: tuple[Period, ...] = ("day", "month")
    for skill, allowed in limits.items():
        for period in both:
            row, tokens = known.get((skill, period)), allowed.of(period)
            if tokens is not None:
                limit.add_metric((skill, period), tokens)
            used.add_metric((skill, period), row.used if row else 0)
            reserved.add_metric((skill, period), row.reserved if row else 0)
    return limit, used, reserved


def _info(name: str, text: str, rows: Sequence[dict[str, str]]) -> GaugeMetricFamily:
    """A gauge that is always 1 and says something by its labels."""
    family = GaugeMetricFamily(name, text, labels=tuple(rows[0]) if rows else ())
    for row in rows:
        family.add_metric(tuple(row.values()), 1)
    return family
