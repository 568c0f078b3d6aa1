"""Grounds a question in knowledge, by calibrated thresholds: a refusal, a stored answer, or passages for the model."""

import time
from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from server.knowledge.grounding.follow_up import points_back, queries
from server.knowledge.record import Thresholds
from server.knowledge.search import Found

PASSAGES = 5
"""Passages that may be quoted."""
NEAREST = 3
"""Documents that a refusal links to."""
NEAR = 0.5
"""A refusal links to passages with at least this share of the relevance that an answer needs."""

Kind = Literal["refused", "verbatim", "passages"]


class Searchable(Protocol):
    """What is searched; `server.knowledge.search.Knowledge` is one."""

    @property
    def thresholds(self) -> Thresholds:
        """The calibrated limits."""

    def search(self, question: str, limit: int, groups: frozenset[str]) -> list[Found]:
        """The `limit` best passages that `groups` may see."""
        ...

    def compare(self, question: str, texts: Sequence[str]) -> list[float]:
        """How near each text is to `question`."""
        ...


class Question(Struct, frozen=True):
    """Who asks what."""

    questions: tuple[str, ...]
    """The user's turns, the last one last."""
    groups: frozenset[str] = frozenset()
    """What the caller may see beside what everyone may: from its verified identity or its key."""


class Grounding(Struct, frozen=True):
    """How a question is answered, and from what."""

    kind: Kind
    found: tuple[Found, ...]
    """The passages to quote, the stored answer, or what a refusal links to; best first."""
    seconds: float
    """What the search took."""
    query: str = ""
    """What was searched for."""

    @property
    def relevance(self) -> float:
        """Of the best passage; 0 if nothing was found."""
        return self.found[0].relevance if self.found else 0.0


def ground(knowledge: Searchable, question: Question) -> Grounding:
    """Search for `question` and decide how it is answered.

    A stored question that is nearly the same as the last one answers it verbatim. Otherwise a question that points back
    is searched with the one before, and a short one if it finds nothing alone. Nothing relevant enough is refused, with
    the nearest documents.
    """
    started = time.perf_counter()
    limits, query, found = knowledge.thresholds, "", list[Found]()
    for number, query in enumerate(queries(question.questions)):
        found = knowledge.search(query, PASSAGES, question.groups)
        same = [one for one in found if one.passage.question and one.same_question >= limits.same_question]
        if same and number == 0:
            best = max(same, key=lambda one: one.same_question)
            return Grounding("verbatim", (best,), time.perf_counter() - started, query)
        if any(one.relevance >= limits.on_topic for one in found) and not points_back(query):
            break
    if any(one.relevance >= limits.on_topic for one in found):
        return Grounding("passages", tuple(found), time.perf_counter() - started, query)
    return Grounding("refused", tuple(_nearest(found, limits.on_topic)), time.perf_counter() - started, query)


def _nearest(found: Sequence[Found], needed: float) -> list[Found]:
    """The best passages of different documents that are at least somewhat relevant."""
    near: dict[str, Found] = {}
    for one in found:
        if one.relevance >= NEAR * needed:
            near.setdefault(one.passage.url.partition("#")[0], one)
    return list(near.values())[:NEAREST]
