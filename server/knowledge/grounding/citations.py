"""Which passages a reply may cite: a sentence cites the passage that shares most of its words, if enough."""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from server.knowledge.index.terms import STOP_WORDS, WORD
from server.knowledge.passages import Passage

SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?]*")
SHARE = 0.6
"""A sentence is supported by a passage that has at least this share of its words."""
LEAST = 3
"""Shared words below which nothing is cited: two words are shared by chance."""
STEM = 6
"""Characters of a word that are compared, so that endings do not matter."""


class Citation(Struct, frozen=True):
    """A passage that supports a span of a reply."""

    passage: Passage
    start: int
    """First character of the span, from 0."""
    end: int
    """The character after the span."""

    @property
    def title(self) -> str:
        """Title and heading, for a link."""
        passage = self.passage
        below = passage.headings[-1] if passage.headings and passage.headings[-1] != passage.title else ""
        return " - ".join(filter(None, (passage.title, below))) or passage.url


def citations(reply: str, passages: Sequence[Passage]) -> list[Citation]:
    """One citation for each passage that supports a sentence of `reply`, in the order of the reply."""
    sources = [(passage, words(f"{passage.question} {passage.heading} {passage.text}")) for passage in passages]
    spans: dict[int, tuple[int, int]] = {}
    for start, end in sentences(reply):
        said = words(reply[start:end])
        shares = [len(said & known) for _, known in sources]
        best = max(range(len(shares)), key=shares.__getitem__, default=None)
        if best is None or shares[best] < max(LEAST, SHARE * len(said)):
            continue
        spans[best] = (spans.get(best, (start, end))[0], end)
    ordered = sorted(spans.items(), key=lambda one: one[1])
    return [Citation(sources[index][0], start, end) for index, (start, end) in ordered]


def supported(reply: str, passages: Sequence[Passage]) -> float:
    """The share of the reply's words that lie in sentences which a passage supports, 0 to 1; 0 for no words."""
    known = [words(f"{passage.question} {passage.heading} {passage.text}") for passage in passages]
    total = good = 0
    for start, end in sentences(reply):
        said = words(reply[start:end])
        total += len(said)
        shared = max((len(said & one) for one in known), default=0)
        good += len(said) if said and shared >= SHARE * len(said) else 0
    return good / total if total else 0.0


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence or line, without blanks around it."""
    for found in SENTENCE.finditer(text):
        start = found.start() + len(found[0]) - len(found[0].lstrip())
        end = found.end() - (len(found[0]) - len(found[0].rstrip()))
        if end > start:
            yield start, end


def words(text: str) -> frozenset[str]:
    """The stems of a text's words, without stop words."""
    return frozenset(word[:STEM] for word in WORD.findall(text.lower()) if word not in STOP_WORDS)
