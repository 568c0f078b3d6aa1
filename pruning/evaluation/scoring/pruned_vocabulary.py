"""Scores a model with a pruned vocabulary on its base's token ids, so that losses on the same text compare.

A base id that was removed becomes several of the model's ids; its log-likelihood is the sum of theirs.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pruning.data.retokenise import Retokeniser
from pruning.evaluation.scoring.scorer import Job, Scorer, ScoreRequest
from pruning.evaluation.tasks.prompts import Ids
from server.engine.runners import Scoring
from server.engine.sampling.constraint import Constraint


class PrunedVocabularyScorer(Scorer):
    """A scorer whose requests and results are in the base's ids; its logits do not compare with the base's."""

    def __init__(self, runner: Scoring, context: int, retokeniser: Retokeniser) -> None:
        super().__init__(runner, context)
        self._retokeniser = retokeniser

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """Natural log-probabilities, float64 [scored base ids], for each request of each job."""
        found = super().log_likelihoods([[self._retokenised(request) for request in job] for job in jobs], step)
        return [
            [self._per_base_id(values, request) for values, request in zip(each, job, strict=True)]
            for each, job in zip(found, jobs, strict=True)
        ]

    def replies(
        self,
        prompts: Sequence[Ids],
        tokens: int,
        stop_ids: Iterable[int],
        step: Callable[[], None],
        constraints: Sequence[Constraint | None] = (),
    ) -> list[Ids]:
        """Greedy replies of at most `tokens` of the model's own ids, returned as the base's ids of the same tokens.

        `constraints` must be for the model's own tokens.
        """
        found = super().replies(
            [self._retokeniser.ids(prompt) for prompt in prompts], tokens, stop_ids, step, constraints
        )
        return [self._retokeniser.back(reply) for reply in found]

    def _retokenised(self, request: ScoreRequest) -> ScoreRequest:
        """The same text in the model's ids."""
        context = self._retokeniser.ids(request.ids[: request.first])
        return ScoreRequest(self._retokeniser.ids(request.ids), len(context))

    def _per_base_id(self, values: Tensor, request: ScoreRequest) -> Tensor:
        """Sum `values` [scored model ids] over the ids that each scored base id became: [scored base ids]."""
        lengths = [len(self._retokeniser.parts(id)) for id in request.target]
        return torch.stack([part.sum() for part in torch.split(values, lengths)])
