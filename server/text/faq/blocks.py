"""Extracts question and answer pairs from a page given as headings and paragraphs.

A heading is a question if it ends with a question mark, or if at least half of the headings of its kind ask something
and it asks too or is long. The answer runs to the next question, or to another heading of the question's level or
higher; lower headings belong to the answer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHARE = 0.5
"""Fraction of a kind's headings that must ask something for the kind to hold questions."""

ASKING = re.compile(r"\?\W*$|^(how|what|why|where|when|who|which|can|do|does|is|are|should|i)\b", re.IGNORECASE)
NUMBER = re.compile(r"^\s*(?:\(?\d+(?:\.\d+)*[.)]?|[QA]\d*[.:)])\s+")
LONG = 6
"""Words from which a heading of such a kind is a question without asking: "SQLite lets me insert a string into ..."."""


class Block(NamedTuple):
    """A heading with its kind and level, of which 1 is the highest, or a paragraph without either."""

    text: str
    kind: str = ""
    level: int = 0


class QuestionAnswer(NamedTuple):
    """One question, without its number, and its answer; paragraphs are separated by a blank line."""

    question: str
    answer: str


def pairs(blocks: Sequence[Block]) -> list[QuestionAnswer]:
    """The questions of a page with their answers; questions without an answer are dropped."""
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
    """A heading on one line, without its number."""
    return NUMBER.sub("", " ".join(heading.split()))


def _is_question(block: Block, kinds: set[str]) -> bool:
    """Whether a block is a question, given the `kinds` of headings that hold questions."""
    if not (block.kind and block.text):
        return False
    asking = block.kind in kinds and (_asks(block) or len(block.text.split()) >= LONG)
    return asking or block.text.endswith("?")


def _asks(heading: Block) -> bool:
    """Whether a heading asks something."""
    return bool(ASKING.search(numberless(heading.text)))


def _asking(blocks: Iterable[Block]) -> set[str]:
    """The kinds of headings of which at least a share of SHARE ask something."""
    asks: dict[str, list[bool]] = defaultdict(list)
    for block in blocks:
        if block.kind and block.text:
            asks[block.kind].append(_asks(block))
    return {kind for kind, answers in asks.items() if sum(answers) >= SHARE * len(answers)}
