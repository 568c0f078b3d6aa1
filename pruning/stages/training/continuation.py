"""The stage `continue`: continued pre-training on several domains with dynamic batch loading.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.2. The reference losses are the base's on each
domain's held-out texts; the step that scores best on those is kept, or the model is rolled back.
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from pruning.recipe.training import Continue
from pruning.stages.context import StageContext, StageModel
from pruning.stages.training.data import TrainingData, draw_domain_data, joined, refuse_scarce_text
from pruning.stages.training.journal import State
from pruning.stages.training.mixture import DomainMixture, sequence
from pruning.stages.training.network import Precision, language_loss, parameters_in_blocks
from pruning.stages.training.record import LETTERS, Effort, best_outcome, recovery, step_of
from pruning.stages.training.run import RunSetup, TrainingRun, best_model, held_out_loss, identity
from pruning.stages.training.student import Student, select_trained
from server.artifact.checkpoint.lineage import Domain, Recovery, Step

logger = logging.getLogger(__name__)

MEASURE = "mean negative log-likelihood of a held-out token, nats, by the domains' first weights"


def apply(stage: Continue, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Train `model`; returns the best step's model, or `model` if no step is better.

    Journals weights, optimiser, scores and domains every `interval` steps.
    """
    data = draw_domain_data(stage, context.inputs)
    setup = RunSetup.of(context)
    state = setup.journal.state(identity(setup.precision, *data))
    if state.step < stage.steps:
        base = StageModel(context.inputs.base.config, context.inputs.base)
        state = Continuation(stage, setup.load(model), base, data, setup).run(state)
    reached = record(stage, model, data, setup.precision, state)
    if not reached.rolled_back:
        model = best_model(model, setup.journal, state)
    return model, step_of(stage, model, state.seconds, reached)


def check(stage: Continue, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The unchanged configuration; raises RecipeError if two domains share texts, DataError if one has too few."""
    refuse_scarce_text(stage, context.inputs)
    return config


class Continuation(TrainingRun):
    """One run; the base is loaded only to measure its reference losses."""

    doing = "continuing"

    def __init__(
        self,
        stage: Continue,
        network: nn.Module,
        base: StageModel,
        data: Sequence[TrainingData],
        setup: RunSetup,
    ) -> None:
        super().__init__(stage, Student(network, select_trained(network, stage.embeddings)), setup)
        self._base, self._data = base, data
        total = sum(domain.weight for domain in stage.domains)
        self._shares = tuple(domain.weight / total for domain in stage.domains)

    @property
    def _mixture(self) -> DomainMixture:
        """The current state of the domains."""
        assert self._state.mixture is not None
        return self._state.mixture

    def _begin(self) -> None:
        reference = self._losses(self._setup.load(self._base))
        mixture = DomainMixture(reference, self._shares, read=(0,) * len(reference))
        self._state = msgspec.structs.replace(self._state, mixture=mixture)
        super()._begin()

    def _train(self, step: int) -> None:
        drawn, mixture = self._mixture.draw(self._stage.batch, f"{self._stage.seed}, {step}")
        self._state = msgspec.structs.replace(self._state, mixture=mixture)
        rows = [sequence(self._data[domain].training, number, self._stage.seed) for domain, number in drawn]
        ids = self._team.part(torch.stack(rows))
        self._optimiser.step(language_loss(self._student.network, ids, self._precision), step)

    def _measure(self, network: nn.Module) -> float:
        losses = self._losses(network)
        self._state = msgspec.structs.replace(self._state, mixture=self._mixture.updated(losses))
        return sum(share * loss for share, loss in zip(self._shares, losses, strict=True))

    @torch.no_grad()
    def _losses(self, network: nn.Module) -> tuple[float, ...]:
        """The held-out loss of `network` on each domain, nats."""
        batch, setup = self._stage.batch, self._setup
        return tuple(held_out_loss(network, part.held_out, batch, setup) for part in self._data)


def record(
    stage: Continue, model: StageModel, data: Sequence[TrainingData], precision: Precision, state: State
) -> Recovery:
    """The lineage's record of a finished run, with each domain's."""
    effort = Effort(
        flops=6.0 * parameters_in_blocks(model) * stage.steps * stage.batch * stage.length,
        formula=f"6 N T; {LETTERS}",
        precision=precision.name,
        measure=MEASURE,
    )
    whole = recovery(stage, joined(data), effort, best_outcome(MEASURE, state))
    return msgspec.structs.replace(whole, domains=_domains(stage, data, state))


def _domains(stage: Continue, data: Sequence[TrainingData], state: State) -> tuple[Domain, ...]:
    """Each domain's data, losses before and after, tokens read and final weight."""
    mixture = state.mixture
    assert mixture is not None
    scores = [score for _, score in state.scores]
    best = min(range(1, len(scores)), key=scores.__getitem__)
    found = []
    for index, (domain, part) in enumerate(zip(stage.domains, data, strict=True)):
        times = mixture.read[index] / len(part.training)
        if times > 1:
            logger.warning("the texts of the domain %s were read %.1f times", domain.name, times)
        found.append(
            Domain(
                name=domain.name,
                training=part.training_record,
                held_out=part.held_out_record,
                reference=mixture.reference[index],
                before=mixture.losses[0][index],
                after=mixture.losses[best][index],
                tokens=mixture.read[index] * stage.length,
                weight=mixture.weights[index],
            )
        )
    return tuple(found)
