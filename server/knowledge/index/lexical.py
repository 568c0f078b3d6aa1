"""Full-text search by BM25 in the partitions that a caller may see."""

import sqlite3

import msgspec
from msgspec import Struct

from server.knowledge.index import terms
from server.knowledge.index.terms import Term, Vocabulary

SATURATED = 2.2
"""k1 + 1 of FTS5's bm25(): what a term's weight is multiplied by at most."""
COLUMN_WEIGHTS = (2.0, 3.0, 1.0)
"""Of title, headings and text."""


class Partition(Struct, frozen=True):
    """Passages with consecutive ids, and stored questions likewise, that the same visitors may see."""

    id: int
    tokenizer: str
    groups: frozenset[str]
    first: int
    last: int
    first_question: int
    last_question: int

    @property
    def size(self) -> int:
        """How many passages it has."""
        return self.last - self.first + 1

    def visible(self, groups: frozenset[str]) -> bool:
        """Whether a visitor who is in `groups` may see it."""
        return not self.groups or not self.groups.isdisjoint(groups)


def read_partitions(connection: sqlite3.Connection) -> tuple[Partition, ...]:
    """All partitions of an index."""
    rows = connection.execute(
        "SELECT id, tokenizer, groups, first, last, first_question, last_question FROM partitions ORDER BY id"
    )
    return tuple(Partition(id, kind, frozenset(msgspec.json.decode(groups)), *span) for id, kind, groups, *span in rows)


class Hit(Struct, frozen=True):
    """A passage, and the share of the question's weighted words that it covers, 0 to 1."""

    id: int
    coverage: float


class Lexical:
    """Searches over one connection, which one thread uses at a time."""

    def __init__(self, connection: sqlite3.Connection, partitions: tuple[Partition, ...]) -> None:
        self._run = connection.execute
        kinds = dict.fromkeys(partition.tokenizer for partition in partitions)
        self._vocabularies = {kind: Vocabulary(connection, kind, at) for at, kind in enumerate(kinds)}

    def search(self, question: str, partitions: list[Partition], limit: int) -> list[Hit]:
        """The best `limit` passages of `partitions`, best first, compared by coverage."""
        kinds = dict.fromkeys(partition.tokenizer for partition in partitions)
        spelled = {kind: self._vocabularies[kind].terms(question) for kind in kinds}
        found = [hit for one in partitions for hit in self._within(one, spelled[one.tokenizer], limit)]
        return sorted(found, key=lambda hit: (-hit.coverage, hit.id))[:limit]

    def same(self, partition: Partition, question: str, other: str) -> float:
        """The weight of the terms that two questions share over the weight of all their terms, 0 to 1."""
        mine, others = self._weights(partition, question), self._weights(partition, other)
        both = mine | others
        return sum(both[term] for term in mine.keys() & others.keys()) / (sum(both.values()) or 1.0)

    def _weights(self, partition: Partition, question: str) -> dict[str, float]:
        spelled = self._vocabularies[partition.tokenizer].terms(question)
        return {term: one.weight for one in self._terms(partition, spelled) for term in one.terms}

    def _within(self, partition: Partition, spelled: dict[str, tuple[str, ...]], limit: int) -> list[Hit]:
        every = self._terms(partition, spelled)
        present = [term for term in every if term.documents]
        if not present:
            return []
        sought = terms.affordable(present)
        query = " OR ".join(f'"{term.word}"' for term in sought)
        table = f"lexical_{partition.id}"
        columns = ", ".join(map(str, COLUMN_WEIGHTS))
        score = f"bm25({table}, {columns}) AS score"
        statement = f"SELECT rowid, {score} FROM {table} WHERE {table} MATCH ? ORDER BY score LIMIT ?"
        left_out = {term.word for term in present} - {term.word for term in sought}
        most = SATURATED * sum(term.weight for term in every if term.word not in left_out)
        return [Hit(id, min(1.0, -score / most)) for id, score in self._run(statement, (query, limit))]

    def _terms(self, partition: Partition, spelled: dict[str, tuple[str, ...]]) -> list[Term]:
        """Each word with its frequency; a term that is not counted occurs once or not at all."""
        found = []
        for word, its_terms in spelled.items():
            counts = [self._count(partition, term) for term in its_terms]
            weight = terms.weight(partition.size, min(counts))
            found.append(Term(word, its_terms, min(counts) or 1, weight))
        return found

    def _count(self, partition: Partition, term: str) -> int:
        rows = self._run(f"SELECT documents FROM terms_{partition.id} WHERE term = ?", (term,)).fetchall()
        return int(rows[0][0]) if rows else 0
