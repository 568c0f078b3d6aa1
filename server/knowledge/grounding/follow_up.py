"""What to search for: the last question, and what was asked before if it cannot be understood alone."""

import re
from collections.abc import Sequence

from server.knowledge.index.terms import STOP_WORDS, WORD

FEW_WORDS = 1
"""A question with at most this number of words of its own leans on the one before."""
MOST_WORDS = 3
"""A question that points back, as with "it", leans on the one before if it has at most these words of its own."""
OPENINGS = re.compile(r"(and|or|but|also|then|so|what about|how about|what if)\b", re.IGNORECASE)
POINTING = frozenset(["it", "its", "that", "this", "these", "those", "they", "them", "their", "there", "one", "ones"])
LONGEST = 2000
"""Characters of a question that are searched for."""


def queries(questions: Sequence[str]) -> list[str]:
    """What to search for: the last question, and if it leans on the one before, both together after it.

    `questions` are the user's, the last one last.
    """
    if not questions:
        return []
    last = questions[-1][:LONGEST]
    if len(questions) > 1 and leans(last):
        return [last, f"{questions[-2][:LONGEST]} {last}"]
    return [last]


def leans(question: str) -> bool:
    """Whether a question seems to lean on the one before: it opens with "and", points back, or has few own words."""
    words = [word.lower() for word in WORD.findall(question)]
    own = [word for word in words if word not in STOP_WORDS]
    points = any(word in POINTING for word in words) and len(own) <= MOST_WORDS
    return len(own) <= FEW_WORDS or points or bool(OPENINGS.match(question.strip()))
