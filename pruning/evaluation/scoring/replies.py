"""Scores the texts that a served skill replied: words shared with the reference, exact and contained answers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.plans.answers import normalised
from pruning.evaluation.tasks.task import KnowledgeTask, Pair, PairsTask

REFUSED = "refused"


def questions(task: PairsTask | KnowledgeTask) -> list[str]:
    """What a skill is asked: the items' questions, then those off the topic."""
    off_topic = task.off_topic if isinstance(task, KnowledgeTask) else ()
    return [*(item.question for item in pairs(task)), *off_topic]


def pairs(task: PairsTask | KnowledgeTask) -> list[Pair]:
    """The task's questions with their right answers."""
    return [item for item in task.items if isinstance(item, Pair)]


def reply_scores(
    task: PairsTask | KnowledgeTask, replies: Sequence[str], refused: Sequence[bool]
) -> Mapping[str, tuple[float, ...]]:
    """The values of each measure for the `replies` to `questions(task)`, one for each item."""
    items = pairs(task)
    said = [normalised(text) for text in replies[: len(items)]]
    right = [[normalised(answer) for answer in item.right] for item in items]
    scores = {
        "overlap": tuple(max(overlap(text, one) for one in those) for text, those in zip(said, right, strict=True)),
        measures.CONTAINED: tuple(float(any(one in t for one in r)) for t, r in zip(said, right, strict=True)),
        measures.EXACT: tuple(float(text in those) for text, those in zip(said, right, strict=True)),
        REFUSED: tuple(map(float, refused[: len(items)])),
    }
    if len(refused) > len(items):
        scores[measures.OFF_TOPIC_REFUSED] = tuple(map(float, refused[len(items) :]))
    return scores


def overlap(text: str, reference: str) -> float:
    """F1 of the words of two normalised texts (Rajpurkar et al. 2016, section 6.1)."""
    own, other = Counter(text.split()), Counter(reference.split())
    shared = (own & other).total()
    return 2 * shared / (own.total() + other.total()) if shared else 0.0
