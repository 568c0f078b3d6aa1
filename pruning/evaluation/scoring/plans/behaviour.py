"""Where a model's answers leave the base's: no labels are needed, only what users ask."""

import torch
from torch import Tensor

from pruning.evaluation.scoring import scores as measures
from pruning.evaluation.scoring.plans.plan import Step, Subject, request
from pruning.evaluation.scoring.scorer import Job, Request
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.prompts import Ids, Prompts
from pruning.evaluation.tasks.task import Behaviour, Prompt


class BehaviourPlan:
    """KL divergence, flips and agreement.

    Both models read the base's own greedy reply. KL(base || model) is the mean over its tokens; a flip is a token where
    another one would be chosen (Dutta et al. 2024, "Accuracy is not all you need"); agreement is 1 where the model's
    own greedy reply is the base's.
    """

    def __init__(self, task: Behaviour, prompts: Prompts) -> None:
        self._task, self._prompts = task, prompts
        self.reply = task.greedy
        self.items = [item for item in task.items if isinstance(item, Prompt)]
        self._questions = [prompts.question(item.prompt) for item in self.items]
        self.jobs: list[Job] = [[Request(context, len(context) - 1)] for context in self._questions]
        self._base: list[Ids] | None = None

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Score every prompt; without a base the model is its own."""
        if self._base is None or base is None:
            reference = base or subject
            self._base = reference.scorer.replies(self._questions, self._task.greedy, reference.stop_ids, step)
        replies = self._base
        if base is not None:
            replies = subject.scorer.replies(self._questions, self._task.greedy, subject.stop_ids, step)
        pairs = zip(self._questions, self._base, strict=True)
        jobs: list[Job] = [[request(context, reply)] for context, reply in pairs]
        kl, flips = [0.0] * len(jobs), [0.0] * len(jobs)
        if base is not None:
            both = zip(base.scorer.logits(jobs), subject.scorer.logits(jobs), strict=True)
            for (job, _, expected), (_, _, found) in both:
                kl[job] = divergence(expected, found)
                flips[job] = (expected.argmax(dim=-1) != found.argmax(dim=-1)).double().mean().item()
                step()
        same = tuple(float(reply == wanted) for reply, wanted in zip(replies, self._base, strict=True))
        values = {measures.KL: tuple(kl), measures.FLIPS: tuple(flips), measures.AGREEMENT: same}
        return Scores(values, tuple(self._prompts.text(reply) for reply in replies), tuple(replies))


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean over rows of KL(expected || found) of two sets of logits [n, vocabulary], in nats."""
    left, right = expected.double().log_softmax(dim=-1), found.double().log_softmax(dim=-1)
    return torch.nn.functional.kl_div(right, left, reduction="batchmean", log_target=True).item()
