"""A page as a run of headings and paragraphs, and the questions and answers in it.

A page's questions are the headings that end with a question mark, and those of each kind of which at least half ask
something; what stands between two of them is the answer. Other headings end an answer if they are of its question's
level or higher, or are part of it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHARE = 0.5
"""The part of a kind's headings that must ask something for all of them to be questions."""

ASKING = re.compile(r"\?\W*$|^(how|what|why|where|when|who|which|can|do|does|is|are|should|i)\b", re.IGNORECASE)
NUMBER = re.compile(r"^\s*(?:\(?\d+(?:\.\d+)*[.)]?|[QA]\d*[.:)])\s+")
LONG = 6
"""Words of a heading that, among questions, is one too without asking: "SQLite lets me insert a string into ..."."""


class Block(NamedTuple):
    """A heading of some kind and level, 1 being the highest, or a paragraph, which has neither."""

    text: str
    kind: str = ""
    level: int = 0


class QuestionAnswer(NamedTuple):
    """One question, without its number, and its answer; paragraphs are separated by a blank line."""

    question: str
    answer: str


def pairs(blocks: Sequence[Block]) -> list[QuestionAnswer]:
    """The questions of a page with their answers; those without an answer are left out."""
    kinds = _asking(blocks)
    found: list[tuple[Block, list[str]]] = []
    current: tuple[Block, list[str]] | None = None
    for block in blocks:
        if _is_question(block, kinds):
            current = (block, [])
            found.append(current)
        elif current and block.kind and block.level <= current[0].level:
            current = None
        elif current and block.text:
            current[1].append(block.text)
    return [
        QuestionAnswer(numberless(block.text), "\n\n".join(answer))
        for block, answer in found
        if any(re.search(r"\w", text) for text in answer)
    ]


def numberless(heading: str) -> str:
    """A heading on one line, without the number before it."""
    return NUMBER.sub("", " ".join(heading.split()))


def _is_question(block: Block, kinds: set[str]) -> bool:
    """Whether a block is a question, where headings of `kinds` are."""
    if not (block.kind and block.text):
        return False
    asking = block.kind in kinds and (_asks(block) or len(block.text.split()) >= LONG)
    return asking or block.text.endswith("?")


def _asks(heading: Block) -> bool:
    """Whether a heading asks something."""
    return bool(ASKING.search(numberless(heading.text)))


def _asking(blocks: Iterable[Block]) -> set[str]:
    """The kinds of headings that are questions."""
    asks: dict[str, list[bool]] = defaultdict(list)
    for block in blocks:
        if block.kind and block.text:
            asks[block.kind].append(_asks(block))
    return {kind for kind, answers in asks.items() if sum(answers) >= SHARE * len(answers)}
