"""What to search for: the last question, and what was asked before if it cannot be understood alone."""

import re
from collections.abc import Sequence

from server.knowledge.index.terms import STOP_WORDS, WORD

FEW_WORDS = 1
"""A question with at most this number of words of its own leans on the one before, unless it finds something alone."""
MOST_WORDS = 3
"""A question that points back, as with "it", leans on the one before if it has at most these words of its own."""
OPENINGS = re.compile(r"(and|or|but|also|then|so|what about|how about|what if)\b", re.IGNORECASE)
POINTING = frozenset(["it", "its", "that", "this", "these", "those", "they", "them", "their", "there", "one", "ones"])
LONGEST = 2000
"""Characters of a question that are searched for."""


def queries(questions: Sequence[str]) -> list[str]:
    """What to search for: the last question, and if it leans on the one before, both together after it.

    `questions` are the user's, the last one last. The second of two is needed only if the first finds nothing, unless
    the last question `points_back`.
    """
    if not questions:
        return []
    last = questions[-1][:LONGEST]
    if len(questions) > 1 and leans(last):
        return [last, f"{questions[-2][:LONGEST]} {last}"]
    return [last]


def leans(question: str) -> bool:
    """Whether a question may lean on the one before: it points back, or has few words of its own."""
    return points_back(question) or len(_own(question)) <= FEW_WORDS


def points_back(question: str) -> bool:
    """Whether a question opens with "and", or is short and has a word such as "it"."""
    points = any(word.lower() in POINTING for word in WORD.findall(question))
    return (points and len(_own(question)) <= MOST_WORDS) or bool(OPENINGS.match(question.strip()))


def _own(question: str) -> list[str]:
    """The words that other questions do not have as well."""
    return [word for word in map(str.lower, WORD.findall(question)) if word not in STOP_WORDS]
