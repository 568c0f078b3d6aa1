"""The words of a question as FTS5 sees them: their terms, how many passages have each, and the query to send."""

import re
import sqlite3
from math import log

from msgspec import Struct

from server.knowledge.index.schema import TRIGRAMS

WORD = re.compile(r"[^\W_]+")
MOST_WORDS = 64
"""Words of a question that are looked up; a longer one is a document."""
MOST_POSTINGS = 25_000
"""Passages that the terms of one query may occur in, in sum: the rarest terms are taken first."""
STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "let",
        "me",
        "my",
        "of",
        "on",
        "or",
        "our",
        "out",
        "please",
        "she",
        "should",
        "so",
        "some",
        "tell",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "up",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
"""English words that say nothing of a topic; left out where others remain."""


class Term(Struct, frozen=True):
    """A word of the question, and what the index knows of it."""

    word: str
    terms: tuple[str, ...]
    """What the tokenizer makes of it: one term, or none."""
    documents: int
    weight: float
    """Its inverse document frequency, as in FTS5's bm25()."""


def words(question: str, tokenizer: str) -> list[str]:
    """The distinct words of a question in their order; overlapping trigrams where words are not parted by blanks."""
    found = WORD.findall(question.lower())
    if tokenizer == TRIGRAMS:
        found = [word[at : at + 3] for word in found for at in range(max(1, len(word) - 2))]
    elif tokenizer.startswith("porter"):
        found = [word for word in found if word not in STOP_WORDS] or found
    return list(dict.fromkeys(found))[:MOST_WORDS]


class Vocabulary:
    """Terms of one tokenizer, through a temporary full-text table of `connection`."""

    def __init__(self, connection: sqlite3.Connection, tokenizer: str, number: int) -> None:
        self._run = connection.execute
        self._table = f"temp.words_{number}"
        self._tokenizer = tokenizer
        self._run(f"CREATE VIRTUAL TABLE {self._table} USING fts5(text, tokenize = '{tokenizer}')")
        self._run(f"CREATE VIRTUAL TABLE temp.spelled_{number} USING fts5vocab(temp, words_{number}, instance)")
        self._spelled = f"temp.spelled_{number}"

    def terms(self, question: str) -> dict[str, tuple[str, ...]]:
        """The terms of each word of the question."""
        spelled = words(question, self._tokenizer)
        self._run("BEGIN")
        try:
            for place, word in enumerate(spelled, 1):
                self._run(f"INSERT INTO {self._table} (rowid, text) VALUES (?, ?)", (place, word))
            found: dict[str, list[str]] = {word: [] for word in spelled}
            for place, term in self._run(f"SELECT doc, term FROM {self._spelled} ORDER BY doc, offset"):
                found[spelled[place - 1]].append(term)
        finally:
            self._run("ROLLBACK")
        return {word: tuple(terms) for word, terms in found.items() if terms}


def weight(passages: int, documents: int) -> float:
    """FTS5's inverse document frequency of a term in `documents` of `passages`."""
    return max(log((passages - documents + 0.5) / (documents + 0.5)), 1e-6)


def affordable(terms: list[Term]) -> list[Term]:
    """The rarest terms that are in at most MOST_POSTINGS passages in sum; always at least one."""
    kept: list[Term] = []
    postings = 0
    for term in sorted(terms, key=lambda term: term.documents):
        postings += term.documents
        if kept and postings > MOST_POSTINGS:
            break
        kept.append(term)
    return kept
