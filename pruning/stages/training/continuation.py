"""Goes on with pre-training what was pruned: the language model's loss on several domains, by dynamic batch loading.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.2. The references are the base's own losses on
texts of each domain that are never trained on; the step that scores best on those is kept, or the model as it was.
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from pruning.recipe.options import Continue
from pruning.stages.context import Model, Place
from pruning.stages.training.journal import State
from pruning.stages.training.mixture import Mixture, sequence
from pruning.stages.training.network import Precision, language_loss, parameters_in_blocks
from pruning.stages.training.run import (
    LETTERS,
    Effort,
    Run,
    Setting,
    best_model,
    best_outcome,
    identity,
    language_score,
    recovery,
    step_of,
)
from pruning.stages.training.student import Student, kept
from pruning.stages.training.text import Lessons, draw_domains, joined, refuse_scarce
from server.artifact.checkpoint.lineage import Domain, Recovery, Step

logger = logging.getLogger(__name__)

MEASURE = "mean negative log-likelihood of a held-out token, nats, by the domains' first weights"


def apply(stage: Continue, model: Model, place: Place) -> tuple[Model, Step]:
    """Train `model` and keep the best step, or `model` itself where none is better."""
    lessons = draw_domains(stage, place.inputs)
    setting = Setting.of(place)
    state = setting.journal.state(identity(setting.precision, *lessons))
    if state.step < stage.steps:
        base = Model(place.inputs.base.config, place.inputs.base)
        state = Continuation(stage, setting.load(model), base, lessons, setting).run(state)
    reached = record(stage, model, lessons, setting.precision, state)
    if not reached.rolled_back:
        model = best_model(model, setting.journal, state)
    return model, step_of(stage, model, state.seconds, reached)


def check(stage: Continue, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration, which stays; raises before any work where two domains share texts, or one has too few."""
    refuse_scarce(stage, place.inputs)
    return config


class Continuation(Run):
    """One run; the base is in memory for its references alone."""

    doing = "continuing"

    def __init__(
        self,
        stage: Continue,
        network: nn.Module,
        base: Model,
        lessons: Sequence[Lessons],
        setting: Setting,
    ) -> None:
        super().__init__(stage, Student(network, kept(network, stage.embeddings)), setting)
        self._base, self._lessons = base, lessons
        total = sum(domain.weight for domain in stage.domains)
        self._shares = tuple(domain.weight / total for domain in stage.domains)

    @property
    def _mixture(self) -> Mixture:
        """How the domains stand."""
        assert self._state.mixture is not None
        return self._state.mixture

    def _begin(self) -> None:
        reference = self._losses(self._setting.load(self._base))
        mixture = Mixture(reference, self._shares, read=(0,) * len(reference))
        self._state = msgspec.structs.replace(self._state, mixture=mixture)
        super()._begin()

    def _train(self, step: int) -> None:
        drawn, mixture = self._mixture.draw(self._stage.batch, f"{self._stage.seed}, {step}")
        self._state = msgspec.structs.replace(self._state, mixture=mixture)
        rows = [sequence(self._lessons[domain].training, number, self._stage.seed) for domain, number in drawn]
        ids = self._team.part(torch.stack(rows))
        self._optimiser.step(language_loss(self._student.network, ids, self._precision), step)

    def _judge(self, network: nn.Module) -> float:
        losses = self._losses(network)
        self._state = msgspec.structs.replace(self._state, mixture=self._mixture.judged(losses))
        return sum(share * loss for share, loss in zip(self._shares, losses, strict=True))

    @torch.no_grad()
    def _losses(self, network: nn.Module) -> tuple[float, ...]:
        """The held-out loss of `network` on each domain."""
        batch, setting = self._stage.batch, self._setting
        return tuple(language_score(network, part.held_out, batch, setting) for part in self._lessons)


def record(stage: Continue, model: Model, lessons: Sequence[Lessons], precision: Precision, state: State) -> Recovery:
    """What the lineage says of a finished run, domain by domain."""
    effort = Effort(
        flops=6.0 * parameters_in_blocks(model) * stage.steps * stage.batch * stage.length,
        formula=f"6 N T; {LETTERS}",
        precision=precision.name,
        measure=MEASURE,
    )
    whole = recovery(stage, joined(lessons), effort, best_outcome(MEASURE, state))
    return msgspec.structs.replace(whole, domains=_domains(stage, lessons, state))


def _domains(stage: Continue, lessons: Sequence[Lessons], state: State) -> tuple[Domain, ...]:
    """How each domain began and where the best step left it."""
    mixture = state.mixture
    assert mixture is not None
    scores = [score for _, score in state.scores]
    best = min(range(1, len(scores)), key=scores.__getitem__)
    found = []
    for index, (domain, part) in enumerate(zip(stage.domains, lessons, strict=True)):
        times = mixture.read[index] / len(part.training)
        if times > 1:
            logger.warning("the texts of the domain %s were read %.1f times", domain.name, times)
        found.append(
            Domain(
                name=domain.name,
                training=part.training_data,
                held_out=part.held_out_data,
                reference=mixture.reference[index],
                before=mixture.losses[0][index],
                after=mixture.losses[best][index],
                tokens=mixture.read[index] * stage.length,
                weight=mixture.weights[index],
            )
        )
    return tuple(found)
