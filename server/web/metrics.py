"""What Prometheus is shown of a server: its ledger, its engine, its ratings, and how long replies take."""

from collections.abc import Iterable

from msgspec.structs import asdict
from prometheus_client import CollectorRegistry

from server.chat.conversation.feedback import Feedback
from server.config import Config
from server.metering.histograms import Histograms, Observers, VllmHistograms
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Limits
from server.metering.metrics import Described, EngineCollector, FeedbackCollector, LedgerCollector, VllmCollector
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Skills


class Labels:
    """What metrics may be labelled with: the configured skills, and the models loaded since the start."""

    def __init__(self, skills: Skills, rollout: Rollout) -> None:
        self.skills = skills
        self.rollout = rollout

    def limits(self) -> dict[str, Limits]:
        """The budgets by skill."""
        return {skill.name: Limits(skill.tokens_per_day, skill.tokens_per_month) for skill in self.skills}

    def answered(self) -> Iterable[tuple[str, str]]:
        """Each skill with every model that has answered it since the start."""
        return [(skill.name, name) for skill in self.skills for name in self.rollout.names(skill.model)]


def observe(
    config: Config, ledger: Ledger, feedback: Feedback, labels: Labels, registry: CollectorRegistry
) -> Observers:
    """Fill `registry`; returns what is to be told of each reply that ended."""
    rollout, skills = labels.rollout, labels.skills
    registry.register(LedgerCollector(ledger, labels))
    registry.register(EngineCollector(lambda: rollout.engines, lambda: [described(model) for model in rollout.models]))
    registry.register(FeedbackCollector(feedback, lambda: skills.names))
    if config.metrics_compat != "vllm":
        return Observers([Histograms(registry)])
    registry.register(VllmCollector(ledger, lambda: rollout.engines))
    return Observers([Histograms(registry), VllmHistograms(registry)])


def described(model: Model) -> Described:
    """What secateur_model_info and secateur_runtime_info say of a model."""
    lineage = model.lineage
    labels = {
        "model": model.name,
        "base": lineage.base.name,
        "technique": "+".join(step.technique for step in lineage.steps) or "none",
        "digest": lineage.files.get("model.safetensors", ""),
    }
    return Described(labels, [asdict(choice) for choice in model.choices])
