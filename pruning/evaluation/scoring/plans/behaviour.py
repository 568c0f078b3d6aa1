"""Drift of a model's replies from the base's; needs prompts and no labels."""

import torch
from torch import Tensor

from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.plan import LoadedModel, Step, after
from pruning.evaluation.scoring.scorer import Job, ScoreRequest
from pruning.evaluation.tasks.prompts import Ids, Prompts
from pruning.evaluation.tasks.task import BehaviourTask, Prompt


class BehaviourPlan:
    """KL divergence, flips and agreement of greedy replies.

    Both models read the base's greedy reply. KL(base || model) is the mean over its tokens; a flip is a token where the
    models' most likely ids differ (Dutta et al. 2024, "Accuracy is not all you need"); agreement is 1 if the model's
    own greedy reply equals the base's.
    """

    def __init__(self, task: BehaviourTask, prompts: Prompts) -> None:
        self._task, self._prompts = task, prompts
        self.reply = task.greedy
        self.items = [item for item in task.items if isinstance(item, Prompt)]
        self._questions = [prompts.question(item.prompt) for item in self.items]
        self.jobs: list[Job] = [[ScoreRequest(context, len(context) - 1)] for context in self._questions]
        self._base: list[Ids] | None = None

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every prompt; without a base, `model` is compared with itself."""
        if self._base is None or base is None:
            reference = base or model
            self._base = reference.scorer.replies(self._questions, self._task.greedy, reference.stop_ids, step)
        replies = self._base
        if base is not None:
            replies = model.scorer.replies(self._questions, self._task.greedy, model.stop_ids, step)
        pairs = zip(self._questions, self._base, strict=True)
        jobs: list[Job] = [[after(context, reply)] for context, reply in pairs]
        kl, flips = [0.0] * len(jobs), [0.0] * len(jobs)
        if base is not None:
            both = zip(base.scorer.logits(jobs), model.scorer.logits(jobs), strict=True)
            for (job, _, expected), (_, _, found) in both:
                kl[job] = divergence(expected, found)
                flips[job] = (expected.argmax(dim=-1) != found.argmax(dim=-1)).double().mean().item()
                step()
        same = tuple(float(reply == expected) for reply, expected in zip(replies, self._base, strict=True))
        values = {measures.KL: tuple(kl), measures.FLIPS: tuple(flips), measures.AGREEMENT: same}
        return Scores(values, tuple(self._prompts.decode(reply) for reply in replies), tuple(replies))


def divergence(expected: Tensor, found: Tensor) -> float:
    """KL(expected || found) of logits [n, vocabulary], in nats, averaged over rows."""
    left, right = expected.double().log_softmax(dim=-1), found.double().log_softmax(dim=-1)
    return torch.nn.functional.kl_div(right, left, reduction="batchmean", log_target=True).item()
