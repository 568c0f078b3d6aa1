"""Scores a model of fewer tokens than its base has, on the base's own ids: the same texts, so that losses compare.

An id that is gone is written in the model's tokens; its log-likelihood is the sum of theirs.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pruning.data.retokenise import Retokeniser
from pruning.evaluation.scoring.scorer import Job, Request, Scorer
from pruning.evaluation.tasks.prompts import Ids
from server.engine.runners import Scoring


class RespeltScorer(Scorer):
    """A scorer that is asked and answers in the base's ids; it has no logits that could be compared with the base's."""

    def __init__(self, runner: Scoring, context: int, spelling: Retokeniser) -> None:
        super().__init__(runner, context)
        self._spelling = spelling

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """log p of each scored id of the base, float64 [ids scored], for each request of each job."""
        found = super().log_likelihoods([[self._request(request) for request in job] for job in jobs], step)
        return [
            [self._together(values, request) for values, request in zip(each, job, strict=True)]
            for each, job in zip(found, jobs, strict=True)
        ]

    def replies(
        self, prompts: Sequence[Ids], tokens: int, stop_ids: Iterable[int], step: Callable[[], None]
    ) -> list[Ids]:
        """Greedy replies of at most `tokens` of the model's own ids, each as the base's id of the same token."""
        found = super().replies([self._spelling.ids(prompt) for prompt in prompts], tokens, stop_ids, step)
        return [self._spelling.back(reply) for reply in found]

    def _request(self, request: Request) -> Request:
        """The same text in the model's ids."""
        return Request(self._spelling.ids(request.ids), len(self._spelling.ids(request.ids[: request.first])))

    def _together(self, values: Tensor, request: Request) -> Tensor:
        """The sum over what each scored id became."""
        lengths = [len(self._spelling.parts(id)) for id in request.wanted]
        return torch.stack([part.sum() for part in torch.split(values, lengths)])
