"""Prometheus collectors: token and request counters read from the ledger at each scrape, and gauges of the engines.

Labels come from the configuration only, never from a request, so the number of series is bounded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import NamedTuple, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.errors import SecateurError
from server.metering.budgets import KeyIds, key_budgets, skill_budgets
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import KINDS, OUTCOMES, Limits, Totals
from server.storage.database import StorageError


class EngineState(Protocol):
    """The gauges of an engine."""

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""

    @property
    def waiting(self) -> int:
        """Sequences waiting for a slot."""

    @property
    def kv_used_ratio(self) -> float:
        """Fraction of the KV cache in use, 0 to 1."""

    @property
    def cache_blocks(self) -> int:
        """Blocks of the KV cache; 0 if it lies on other machines."""


class Scope(Protocol):
    """The possible labels: configured skills with their budgets, and the models loaded since the start."""

    def limits(self) -> dict[str, Limits]:
        """The budgets by skill, in the order of the configuration."""
        ...

    def key_limits(self) -> Mapping[KeyIds, Limits]:
        """The budgets of the valid API keys that have some."""
        ...

    def answered(self) -> Iterable[tuple[str, str]]:
        """(skill, model) for every model that has answered a skill since the start."""
        ...


Engines = Callable[[], Sequence[tuple[str, EngineState]]]  # (model, engine) for each running engine


class Described(NamedTuple):
    """A loaded model: labels from its lineage, and the automatic choices made for it."""

    labels: dict[str, str]
    choices: Sequence[Mapping[str, str]]


class LedgerCollector(Collector):
    """Counters, budgets and health of the ledger; skills start at zero, so that rates include their first request."""

    def __init__(self, ledger: Ledger, scope: Scope) -> None:
        self._ledger = ledger
        self._scope = scope

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the ledger."""
        return (*_counters(), *skill_budgets([], {}), *key_budgets([], {}))

    def collect(self) -> Iterator[Metric]:
        """The families; without the counters while the ledger cannot be read."""
        try:
            yield from self._counters()
            readable = True
        except StorageError:  # omit the counters; `secateur_ledger_writable` says why
            readable = False
        ledger = self._ledger
        yield _info("secateur_ledger_info", "Whose rows these are.", [{"instance_name": ledger.instance}])
        writable = int(readable and ledger.writable)
        yield GaugeMetricFamily("secateur_ledger_writable", "1 while the ledger can be read and written.", writable)
        yield SummaryMetricFamily(
            "secateur_ledger_commit_seconds",
            "Durable transactions of the ledger.",
            count_value=ledger.commits,
            sum_value=ledger.commit_seconds,
        )

    def _counters(self) -> tuple[Metric, ...]:
        totals, by_skill, by_key = self._ledger.figures()
        tokens, requests = _counters()
        zero: dict[tuple[str, str, str], int] = {}
        zero.update(((*labels, kind), 0) for labels in self._scope.answered() for kind in KINDS)
        for labels, value in {**zero, **totals.tokens}.items():
            tokens.add_metric(labels, value)
        none: dict[tuple[str, str, str], int] = {}
        none.update(((*labels, outcome), 0) for labels in self._scope.answered() for outcome in OUTCOMES)
        for labels, value in {**none, **totals.requests}.items():
            requests.add_metric(labels, value)
        skills = skill_budgets(by_skill, self._scope.limits())
        return tokens, requests, *skills, *key_budgets(by_key, self._scope.key_limits())


class EngineCollector(Collector):
    """Gauges of the engines by model, and labels of the models and automatic choices."""

    def __init__(self, engines: Engines, models: Callable[[], Sequence[Described]]) -> None:
        self._engines = engines
        self._models = models

    def describe(self) -> Iterable[Metric]:
        """As `collect`: reading the engines costs nothing."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        for name, text, values in zip(GAUGES, TEXTS, states(self._engines()), strict=True):
            yield _of_model(GaugeMetricFamily(f"secateur_{name}", text, labels=["model"]), values)
        models = {model.labels["model"]: model for model in self._models()}  # two aliases may name one version
        yield _info("secateur_model_info", "A model served, from its lineage.", [m.labels for m in models.values()])
        choices = [{"model": name, **choice} for name, model in models.items() for choice in model.choices]
        yield _info("secateur_runtime_info", "Each automatic choice, and why it was made.", choices)


GAUGES = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
TEXTS = (
    "Replies being generated.",
    "Requests waiting for a slot.",
    "Part of the KV cache that running replies fill.",
)


def states(engines: Iterable[tuple[str, EngineState]]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Running, waiting and KV cache use by model; two engines of one model count as the sum and the fuller cache."""
    running: dict[str, float] = {}
    waiting: dict[str, float] = {}
    cache: dict[str, float] = {}
    for name, engine in engines:
        running[name] = running.get(name, 0) + engine.running
        waiting[name] = waiting.get(name, 0) + engine.waiting
        cache[name] = max(cache.get(name, 0.0), engine.kv_used_ratio)
    return running, waiting, cache


class FeedbackState(Protocol):
    """The totals of visitors' ratings."""

    def totals(self) -> Mapping[tuple[str, str], int]:
        """(skill, rating) -> how often it was given."""
        ...


class FeedbackCollector(Collector):
    """Visitors' ratings, read from their file at each scrape."""

    def __init__(self, feedback: FeedbackState, skills: Callable[[], Iterable[str]]) -> None:
        self._feedback = feedback
        self._skills = skills

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_ratings()]

    def collect(self) -> Iterator[Metric]:
        """The ratings of each skill, zeros included."""
        family = _ratings()
        zero = {(skill, rating): 0 for skill in self._skills() for rating in ("up", "down")}
        with suppress(SecateurError):  # the file may be locked for a moment
            for labels, value in {**zero, **self._feedback.totals()}.items():
                family.add_metric(labels, value)
        yield family


def _ratings() -> CounterMetricFamily:
    return CounterMetricFamily(
        "secateur_feedback", "Ratings that visitors gave to replies.", labels=("skill", "rating")
    )


class VllmCollector(Collector):
    """Gauges and counters under vLLM's names, for dashboards and autoscalers; promtool objects to the colon."""

    def __init__(self, ledger: Ledger, engines: Engines) -> None:
        self._ledger = ledger
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        """None: names are unique by their prefix."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families as vLLM's v1 engine names them."""
        running, waiting, cache = states(self._engines())
        gauges = (
            ("num_requests_running", "Requests in execution.", running),
            ("num_requests_waiting", "Requests waiting.", waiting),
            ("kv_cache_usage_perc", "KV-cache usage, 1 is full.", cache),
            ("gpu_cache_usage_perc", "Its former name.", cache),
        )
        for name, text, values in gauges:
            yield _of_model(GaugeMetricFamily(f"vllm:{name}", text, labels=("model_name",)), values)
        blocks = {name: engine.cache_blocks for name, engine in self._engines() if engine.cache_blocks}
        sizes = [{"model_name": name, "block_size": BLOCK_SIZE, "num_gpu_blocks": str(n)} for name, n in blocks.items()]
        yield _info("vllm:cache_config_info", "The KV cache: blocks, and tokens of a block.", sizes)
        with suppress(StorageError):  # the ledger cannot be read now
            yield from self._counters(self._ledger.totals(), running)

    def _counters(self, totals: Totals, running: Mapping[str, float]) -> Iterator[Metric]:
        for name, kind in VLLM_TOKENS:
            sums = Counter(dict.fromkeys(running, 0))
            for (_, model, which), count in totals.tokens.items():
                sums[model] += count if which == kind else 0
            yield _of_model(
                CounterMetricFamily(f"vllm:{name}", f"Number of {kind} tokens.", labels=["model_name"]), sums
            )
        success = CounterMetricFamily(
            "vllm:request_success", "Requests that ended well.", labels=("model_name", "finished_reason")
        )
        ended: Counter[tuple[str, str]] = Counter(dict.fromkeys(product(running, FINISHED.values()), 0))
        for (_, model, outcome), count in totals.requests.items():
            if outcome in FINISHED:
                ended[model, FINISHED[outcome]] += count
        for labels, count in ended.items():
            success.add_metric(labels, count)
        yield success


BLOCK_SIZE = "32"
"""Tokens of a block of the engine's KV cache."""
VLLM_TOKENS = (("prompt_tokens", "input"), ("generation_tokens", "output"), ("prefix_cache_queries", "input"),
               ("prefix_cache_hits", "cached"))  # fmt: skip
FINISHED = {"stop": "stop", "length": "length", "budget": "length", "client_gone": "abort"}


def _of_model(family: Metric, values: Mapping[str, float]) -> Metric:
    """`family` with a sample for each model."""
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


def _info(name: str, text: str, rows: Sequence[dict[str, str]]) -> GaugeMetricFamily:
    """An info metric: a gauge of value 1 whose labels carry the information."""
    family = GaugeMetricFamily(name, text, labels=tuple(rows[0]) if rows else ())
    for row in rows:
        family.add_metric(tuple(row.values()), 1)
    return family
