"""The Prometheus metrics of a server: ledger, engines, ratings, and the durations of replies."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.chat.kept.feedback import Feedback
from server.chat.reply import budgets_of
from server.config import Config
from server.metering.histograms import Histograms, Observers, VllmHistograms
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Limits
from server.metering.metrics import Described, EngineCollector, FeedbackCollector, LedgerCollector, VllmCollector
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Skills
from server.skills.counters.store import Store


class Labels:
    """The label values of metrics, bounded: the configured skills, and the models loaded since the start."""

    def __init__(self, skills: Skills, rollout: Rollout) -> None:
        self.skills = skills
        self.rollout = rollout

    def limits(self) -> dict[str, Limits]:
        """Each skill's token budgets."""
        return {skill.name: Limits(skill.tokens_per_day, skill.tokens_per_month) for skill in self.skills}

    def key_limits(self) -> dict[tuple[str, ...], Limits]:
        """The token budgets of valid API keys that have some."""
        found = {key.ids: budgets_of(key.limits) for key in self.skills.limited_keys()}
        return {ids: limits for ids, limits in found.items() if limits != Limits()}

    def answered(self) -> Iterable[tuple[str, str]]:
        """Pairs of a skill and a model that has answered it since the start."""
        return [(skill.name, name) for skill in self.skills for name in self.rollout.names(skill.model)]


class StoreCollector(Collector):
    """Whether the store of rate limits answers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """The current values."""
        return (
            GaugeMetricFamily(
                "secateur_rate_limit_store_up",
                "1 while rate limits can be counted over all replicas.",
                self._store.available,
            ),
            CounterMetricFamily(
                "secateur_rate_limit_store_absences", "Times that Redis stopped answering.", self._store.absences
            ),
        )


class StructuredCollector(Collector):
    """What structured output has cost and saved, by model, since the start."""

    def __init__(self, models: Callable[[], Iterable[Model]]) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        """As `collect`: reading the figures costs nothing."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """The current values."""
        compiled = SummaryMetricFamily(
            "secateur_grammar_compile_seconds", "Grammars compiled, refused ones included.", labels=["model"]
        )
        forced = CounterMetricFamily(
            "secateur_forced_tokens",
            "Output tokens forced by grammars, without a pass.",
            labels=["model"],
        )
        for name, model in {model.name: model for model in self._models()}.items():  # two aliases may name one version
            grammars = model.tokenizer.grammars
            compiled.add_metric([name], count_value=grammars.compiled, sum_value=grammars.seconds)
            forced.add_metric([name], model.engine.forced_tokens)
        return compiled, forced


def register_collectors(
    registry: CollectorRegistry, config: Config, ledger: Ledger, feedback: Feedback, labels: Labels
) -> Observers:
    """Register every collector but the webhook's and the refusals'; returns the observers of ended replies."""
    rollout, skills = labels.rollout, labels.skills
    registry.register(LedgerCollector(ledger, labels))
    registry.register(EngineCollector(lambda: rollout.engines, lambda: [described(model) for model in rollout.models]))
    registry.register(StructuredCollector(lambda: rollout.models))
    registry.register(FeedbackCollector(feedback, lambda: skills.names))
    if config.metrics_compat != "vllm":
        return Observers([Histograms(registry)])
    registry.register(VllmCollector(ledger, lambda: rollout.engines))
    return Observers([Histograms(registry), VllmHistograms(registry)])


def described(model: Model) -> Described:
    """The labels of a model's secateur_model_info and secateur_runtime_info."""
    lineage = model.lineage
    labels = {
        "model": model.name,
        "base": lineage.base.name,
        "technique": "+".join(step.technique for step in lineage.steps) or "none",
        "digest": lineage.files.get("model.safetensors", ""),
    }
    choices = [{"subject": one.subject, "kernel": one.value, "reason": one.reason} for one in model.choices]
    return Described(labels, choices)
