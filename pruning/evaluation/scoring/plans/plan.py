"""What a task asks a model to compute, known before any model is loaded, so that a text too long is refused first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pruning.errors import TaskError
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.scorer import SLOTS, Job, Scorer, ScoreRequest
from pruning.evaluation.tasks.prompts import Ids
from pruning.evaluation.tasks.task import Item

Step = Callable[[], None]
"""Called after each unit of work."""
TokenCount = Callable[[Ids], int]
"""Counts the ids that a text of the plan has in the tokens of the model that reads it."""


class LoadedModel(NamedTuple):
    """A model ready to be scored, and the ids that end its replies."""

    scorer: Scorer
    stop_ids: frozenset[int]


class ScoringPlan(Protocol):
    """The texts and replies that a task needs from each model."""

    jobs: list[Job]
    """The texts to score: first one job per item, in the items' order, then any others."""
    reply: int
    """Tokens to generate greedily per item, or 0."""

    @property
    def items(self) -> Sequence[Item]:
        """The scored items."""
        ...

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """The scores of `model`, with a call of `step` per unit of work; only behaviour tasks compare with `base`."""
        ...


def count_steps(plan: ScoringPlan) -> int:
    """The units of work in a plan: scored texts and generated replies."""
    return sum(map(len, plan.jobs)) + (len(plan.items) if plan.reply else 0)


def context_needed(plan: ScoringPlan, count: TokenCount = len) -> int:
    """The context that a runner needs: ids of the longest text and its reply."""
    return max(count(request.ids) for job in plan.jobs for request in job) + plan.reply


def check_plan(plan: ScoringPlan, limit: int | None, count: TokenCount = len) -> None:
    """Raise TaskError, naming the item, for a target without tokens or a text longer than `limit` ids."""
    for item, job in zip(plan.items, plan.jobs, strict=False):
        if not job:
            raise TaskError(f"item {item.id!r} has no text, so nothing can be scored")
        longest = max(count(request.ids) for request in job) + plan.reply
        if not all(request.target for request in job):
            raise TaskError(f"item {item.id!r} has an answer without a token, so nothing can be scored")
        if limit is not None and longest > limit:
            raise TaskError(
                f"item {item.id!r} is {longest} tokens long with its prompt and reply, "
                f"but the model's context is {limit}: shorten it, or score fewer tokens"
            )


def after(context: Ids, target: Ids) -> ScoreRequest:
    """The request to score `target` after `context`."""
    return ScoreRequest(context + target, len(context))


def jobs_after(context: Ids, targets: Sequence[Ids]) -> list[Job]:
    """Jobs that score each of `targets` after one `context`, in order: one job for each slot of the KV cache."""
    requests = [after(context, ids) for ids in targets]
    size = -(-len(requests) // SLOTS)
    return [requests[start : start + size] for start in range(0, len(requests), size)]
