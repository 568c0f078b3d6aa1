"""What Prometheus is shown of a server: its ledger, its engine, its ratings, and how long replies take."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from server.config import Config
from server.conversation.feedback import Feedback
from server.metering.histograms import Histograms, Observers, VllmHistograms
from server.metering.ledger import Ledger
from server.metering.metrics import EngineCollector, FeedbackCollector, LedgerCollector, VllmCollector
from server.metering.records import Limits
from server.rollout import Model, Rollout
from server.skills import Skills


class Labels:
    """What metrics may be labelled with: the configured skills, and the models loaded since the start."""

    def __init__(self, skills: Skills, rollout: Rollout) -> None:
        self.skills = skills
        self.rollout = rollout

    def limits(self) -> dict[str, Limits]:
        """The budgets by skill."""
        return {skill.name: Limits(skill.tokens_per_day, skill.tokens_per_month) for skill in self.skills}

    def models(self) -> Sequence[str]:
        """Every model loaded since the start."""
        return self.rollout.names


def observe(
    config: Config, ledger: Ledger, feedback: Feedback, labels: Labels, registry: CollectorRegistry
) -> Observers:
    """Fill `registry`; returns what is to be told of each reply that ended."""
    rollout, skills = labels.rollout, labels.skills
    registry.register(LedgerCollector(ledger, labels))
    registry.register(EngineCollector(rollout, lambda: model_labels(rollout.current), lambda: rollout.current.choices))
    registry.register(FeedbackCollector(feedback, lambda: skills.names))
    if config.metrics_compat != "vllm":
        return Observers([Histograms(registry)])
    registry.register(VllmCollector(ledger, rollout, lambda: rollout.current.name))
    return Observers([Histograms(registry), VllmHistograms(registry)])


def model_labels(model: Model) -> dict[str, str]:
    """The labels of secateur_model_info."""
    lineage = model.lineage
    return {
        "model": model.name,
        "base": lineage.base.name,
        "technique": "+".join(step.technique for step in lineage.steps) or "none",
        "digest": lineage.files.get("model.safetensors", ""),
    }
