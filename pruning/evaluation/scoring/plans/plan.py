"""What a task asks a model to compute, found out before a model is loaded, so that a text too long is refused first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pruning.errors import TaskError
from pruning.evaluation.scoring.scorer import SLOTS, Job, Request, Scorer
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.prompts import Ids
from pruning.evaluation.tasks.task import Item

Step = Callable[[], None]
Length = Callable[[Ids], int]
"""How many ids a text has for the model that reads it."""


class Subject(NamedTuple):
    """A model that is scored: what scores it, and the ids that end its replies."""

    scorer: Scorer
    stop_ids: frozenset[int]


class Plan(Protocol):
    """What has to be computed for a task."""

    jobs: list[Job]
    """The texts to score, those of the items first, one job for each item."""
    reply: int
    """Tokens of a reply to generate for each item, or 0."""

    @property
    def items(self) -> Sequence[Item]:
        """What is scored."""
        ...

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Compute it, calling `step` after each of `steps`; `base` is for the kinds that compare with it."""
        ...


def steps(plan: Plan) -> int:
    """How many units of work a plan has."""
    return sum(map(len, plan.jobs)) + (len(plan.items) if plan.reply else 0)


def context(plan: Plan, length: Length = len) -> int:
    """Ids of the longest text, its reply included: the context that the runner must have."""
    return max(length(request.ids) for job in plan.jobs for request in job) + plan.reply


def check(plan: Plan, limit: int | None, length: Length = len) -> None:
    """Raise TaskError, naming the item, for a wanted text without tokens or one longer than `limit` ids."""
    for item, job in zip(plan.items, plan.jobs, strict=False):
        if not job:
            raise TaskError(f"item {item.id!r} has no text, so nothing can be scored")
        longest = max(length(request.ids) for request in job) + plan.reply
        if not all(request.wanted for request in job):
            raise TaskError(f"item {item.id!r} has an answer without a token, so nothing can be scored")
        if limit is not None and longest > limit:
            raise TaskError(
                f"item {item.id!r} is {longest} tokens long with its prompt and reply, "
                f"but the model's context is {limit}: shorten it, or score fewer tokens"
            )


def request(context: Ids, wanted: Ids) -> Request:
    """Score `wanted` after `context`."""
    return Request(context + wanted, len(context))


def alone(context: Ids, wanted: Sequence[Ids]) -> list[Job]:
    """Jobs that score each of `wanted` after the same `context`, in order, over all slots."""
    requests = [request(context, ids) for ids in wanted]
    size = -(-len(requests) // SLOTS)
    return [requests[start : start + size] for start in range(0, len(requests), size)]
