"""Quotations: sentences of passages, word by word, as the only things that a reply may say."""

import json
import re
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from server.knowledge.grounding.grounding import Searchable
from server.knowledge.passages import Passage
from server.text.grammar.grammar import Grammar

FENCED = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
ASIDE = re.compile(r"^\s*(?:\||#|!\[|<)")
"""Lines that are no sentences: rows of tables, headings, pictures and tags."""
END = re.compile(r"(?<=[.!?:;])[\"')\]]*\s+(?=[\"'(\[`*]*[A-Z0-9])")
LEAST_WORDS = 3
LONGEST = 800
"""Characters of a quotation."""
MOST = 3
"""Quotations that a reply may begin with: the nearest, since an encoder judges better than a small model."""
LEAST_NEAR = 0.5
"""Of the nearest one's nearness, what the others need; a small model would choose among unrelated ones by chance."""
FOLLOWING = 2
"""Further sentences of the same passage that a reply may go on with."""


class Quotation(Struct, frozen=True):
    """A sentence of a passage, or a sentence with the code that it introduces."""

    text: str
    passage: int
    """The number of its passage, from 0."""
    place: int
    """Its number among the sentences of its passage, from 0."""
    above: str = ""
    """The question or heading of its passage."""

    @property
    def compared(self) -> str:
        """What a question is compared with."""
        return f"{self.above}\n{self.text}" if self.above else self.text


def quotations(passages: Sequence[Passage]) -> list[Quotation]:
    """Every sentence of the passages that can be quoted, in their order, each once; a stored answer as a whole."""
    found: dict[str, Quotation] = {}
    for number, passage in enumerate(passages):
        whole = passage.question and len(passage.text) <= LONGEST
        for place, text in enumerate([passage.text] if whole else _sentences(passage.text)):
            found.setdefault(text, Quotation(text, number, place, passage.question or passage.heading or passage.title))
    return list(found.values())


def quoted_only(
    knowledge: Searchable,
    question: str,
    passages: Sequence[Passage],
    spells_special: Callable[[str], bool],
) -> Grammar | None:
    """What may be said: the sentences that are nearest to `question`; None if the passages have none.

    A sentence for which `spells_special` holds is left out: the grammar would force the special token.
    """
    known = [one for one in quotations(passages) if not spells_special(one.text)]
    nearness = knowledge.compare(question, [one.compared for one in known])
    ranked = sorted(zip(nearness, range(len(known)), strict=True), key=lambda pair: (-pair[0], pair[1]))
    nearest = max(nearness, default=0.0)
    least = min(LEAST_NEAR * nearest, nearest)  # also where all are below 0
    best = [known[index] for near, index in ranked[:MOST] if near >= least]
    return Grammar("choice", json.dumps(runs(best, known)), "knowledge") if best else None


def runs(best: Sequence[Quotation], known: Sequence[Quotation]) -> list[str]:
    """What a reply may be: one of the `best` quotations, alone or with up to FOLLOWING that come next in its passage.

    `known` are all quotations of the passages.
    """
    after = {(one.passage, one.place): one for one in known}
    found: dict[str, None] = {}
    for one in best:
        text = one.text
        found[text] = None
        for step in range(1, FOLLOWING + 1):
            if (next_one := after.get((one.passage, one.place + step))) is None:
                break
            text = f"{text} {next_one.text}"
            found[text] = None
    return list(found)


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text; code is part of the sentence before it."""
    last = ""
    for block in _blocks(text):
        if FENCED.match(block):
            if last and len(last) + len(block) < LONGEST:
                yield f"{last}\n\n{block}"
                last = ""
            continue
        if last:
            yield last
        *complete, last = [part for part in END.split(block) if _quotable(part)] or [""]
        yield from complete
    if last:
        yield last


def _blocks(text: str) -> Iterator[str]:
    """Code, paragraphs as one line, and items of lists each for itself."""
    end = 0
    for code in FENCED.finditer(text):
        yield from _paragraphs(text[end : code.start()])
        yield code[0]
        end = code.end()
    yield from _paragraphs(text[end:])


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        ends = not line.strip() or ASIDE.match(line) or ITEM.match(line)
        if ends and lines:
            yield " ".join(lines)
            lines = []
        if line.strip() and not ASIDE.match(line):
            lines.append(ITEM.sub("", line).strip())


def _quotable(text: str) -> bool:
    return len(text) <= LONGEST and len(re.findall(r"\w+", text)) >= LEAST_WORDS
