"""Encodes passages and questions that the journal has no vectors of."""

import hashlib
from collections.abc import Callable, Sequence

import numpy
from msgspec import Struct

from server.knowledge.build.journal import Journal
from server.knowledge.index.schema import Row
from server.knowledge.index.vectors import Vector, unit
from server.knowledge.record import EncoderRecord
from server.knowledge.search import Encoder

COMMIT_EVERY = 16
"""Texts after which their vectors are durable."""


class Vectoriser(Struct, frozen=True):
    """An encoder with the journal of its vectors."""

    encoder: Encoder
    record: EncoderRecord
    journal: Journal
    query_prompt: str = ""
    document_prompt: str = ""

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct ones of `texts` without a vector, in their order."""
        digests = {_digest(text): text for text in texts}
        known = self.journal.vectors(self.record.digest, list(digests))
        return [text for digest, text in digests.items() if digest not in known]

    def encode(self, texts: Sequence[str], finished: Callable[[], None]) -> None:
        """Encode and journal `texts`; `finished` is called after each.

        One at a time: what else is in a batch could change the last bits of a vector.
        """
        for start in range(0, len(texts), COMMIT_EVERY):
            made: dict[str, Vector] = {}
            for text in texts[start : start + COMMIT_EVERY]:
                made[_digest(text)] = unit(self.encoder.encode([text]).vectors)[0]
                finished()
            self.journal.remember_vectors(self.record.digest, made)

    def vectors(self, texts: Sequence[str]) -> Vector:
        """The vectors float32 [texts, dimension] of texts that were encoded."""
        digests = [_digest(text) for text in texts]
        known = self.journal.vectors(self.record.digest, list(dict.fromkeys(digests)))
        rows = [known[digest] for digest in digests]
        return numpy.stack(rows) if rows else numpy.empty((0, self.record.dimension), dtype=numpy.float32)

    def forget_others(self, texts: Sequence[str]) -> None:
        """Remove the vectors of all other texts from the journal."""
        self.journal.forget_other_vectors(self.record.digest, map(_digest, texts))

    def passages(self, rows: Sequence[Row]) -> list[str]:
        """What is encoded of each passage."""
        return [self.document_prompt + row.passage.whole for row in rows]

    def questions(self, rows: Sequence[Row]) -> list[str]:
        """What is encoded of each stored question."""
        return [self.query_prompt + row.passage.question for row in rows if row.passage.question]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
