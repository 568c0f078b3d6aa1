"""What a knowledge finds for the questions of a task: ranks of right passages, refusals, and key phrases of answers."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pruning.errors import TaskError
from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.plans.answers import normalised
from pruning.evaluation.tasks.task import Asked, KnowledgeTask
from server.errors import ArtifactError
from server.knowledge.grounding.grounding import Grounding, Question, Searchable, ground
from server.knowledge.passages import Passage
from server.knowledge.search import Knowledge

KEY_WORDS = 3
"""Words of a key phrase."""
LEADING_WORDS = 40
"""Words of an answer, from its start, in which its key phrase is looked for."""
PIECE_WORDS = 5
"""Fewest words of a passage that is right because it is a piece of the answer."""
DEPTHS = {1: measures.HIT_1, 3: measures.HIT_3, 5: measures.HIT_5}


class Retrieval(NamedTuple):
    """What a knowledge finds for a task."""

    items: list[Asked]
    """The questions that models answer."""
    groundings: list[Grounding]
    """How each of `items` is answered."""
    values: dict[str, tuple[float, ...]]
    """hit@k, MRR and refusals: one value for each question of the task, the same for every model."""


def opened(task: KnowledgeTask) -> Knowledge:
    """The task's knowledge; raises TaskError if it cannot be opened."""
    try:
        return Knowledge.open(Path(task.knowledge))
    except ArtifactError as error:
        raise TaskError(f"the knowledge of the task {task.name} cannot be opened: {error}") from None


def retrieval(task: KnowledgeTask, knowledge: Searchable) -> Retrieval:
    """Search for every question of `task` as a server does, and draw the questions for the models."""
    items = [item for item in task.items if isinstance(item, Asked)]
    groundings = [ground(knowledge, Question((item.question,))) for item in items]
    ranks = [rank(item, knowledge) for item in items]
    off_topic = [ground(knowledge, Question((question,))) for question in task.off_topic]
    values = {name: tuple(float(place <= depth) for place in ranks) for depth, name in DEPTHS.items()}
    values[measures.RECIPROCAL_RANK] = tuple(1 / place for place in ranks)
    values[measures.OFF_TOPIC_REFUSED] = tuple(float(found.kind == "refused") for found in off_topic)
    values[measures.ON_TOPIC_REFUSED] = tuple(float(found.kind == "refused") for found in groundings)
    drawn = list(range(len(items)))
    if task.answered is not None and task.answered < len(items):
        drawn = sorted(random.Random(task.seed).sample(drawn, task.answered))
    return Retrieval([items[index] for index in drawn], [groundings[index] for index in drawn], values)


def rank(item: Asked, knowledge: Searchable) -> float:
    """The rank of the first right passage among the five that are found, from 1; infinite if none is right."""
    found = knowledge.search(item.question, max(DEPTHS), frozenset())
    return next((place for place, one in enumerate(found, 1) if right(item, one.passage)), math.inf)


def right(item: Asked, passage: Passage) -> bool:
    """Whether `passage` is at the item's URL, or without one, whether it has the answer or is a piece of it."""
    if item.url:
        return passage.url == item.url or passage.url.partition("#")[0] == item.url
    answer, text = normalised(item.answer), normalised(passage.text)
    return f" {answer} " in f" {text} " or (len(text.split()) >= PIECE_WORDS and f" {text} " in f" {answer} ")


def key_phrases(items: Sequence[Asked]) -> dict[str, str]:
    """Item's id -> its key phrase, normalised: its own, else the rarest KEY_WORDS adjacent words of its answer.

    The rarity of a word is its inverse document frequency log(N / n) among the answers; words of the question count
    nothing, so that repeating it is no answer. An answer of fewer words is its own key phrase.
    """
    frequency = Counter(word for item in items for word in set(normalised(item.answer).split()))
    return {item.id: normalised(item.phrase) or _rarest(item, frequency, len(items)) for item in items}


def _rarest(item: Asked, frequency: Counter[str], answers: int) -> str:
    """The key phrase of an item without one."""
    words, asked = normalised(item.answer).split()[:LEADING_WORDS], set(normalised(item.question).split())
    rarity = [0.0 if word in asked else math.log(answers / frequency[word]) for word in words]
    starts = range(max(1, len(words) - KEY_WORDS + 1))
    best = max(starts, key=lambda start: sum(rarity[start : start + KEY_WORDS]))
    return " ".join(words[best : best + KEY_WORDS])
