"""Opens a knowledge artifact read-only and searches it; any number of threads and processes share its files."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple, Protocol, Self

import msgspec
from msgspec import Struct

from server.artifact.checkpoint import lineage as lineage_record
from server.artifact.checkpoint.lineage import Lineage
from server.errors import ArtifactError
from server.knowledge import record
from server.knowledge.index.fusion import by_rank, by_score
from server.knowledge.index.lexical import Lexical, Partition, read_partitions
from server.knowledge.index.terms import STOP_WORDS, WORD
from server.knowledge.index.vectors import Vector, Vectors, unit
from server.knowledge.passages import Passage
from server.knowledge.record import INDEX, VECTORS, EncoderRecord, Manifest, Ranking, Thresholds
from server.storage.digests import FileDigests
from server.storage.packages import located

DEPTH = 50
"""Passages of each ranking that are fused."""
COMPARED = 10
"""Passages whose stored questions are compared by words where there are no vectors."""
MAPPED = 1 << 30
"""Bytes of the index that SQLite may map."""
EVERYONE: frozenset[str] = frozenset()


class Encoder(Protocol):
    """Encodes questions; `server.engine.runners.encoder.Encoder` is one."""

    def encode(self, inputs: Sequence[str]) -> Any:
        """An object whose `vectors` are float32 [texts, dimension]."""
        ...


class Found(Struct, frozen=True):
    """A passage that was found, and why."""

    id: int
    """The passage's number in this artifact."""
    passage: Passage
    score: float
    """What results are ordered by; its meaning depends on the ranking."""
    relevance: float
    """What `Thresholds.on_topic` is compared with: its cosine, or without vectors its coverage."""
    coverage: float
    """The share of the question's weighted words that it has, 0 to 1; 0 if it was found by its vector only."""
    cosine: float | None = None
    """None without vectors."""
    same_question: float = 0.0
    """How nearly the stored question asks the same, at most 1; 0 for a passage without one."""


class Listed(NamedTuple):
    """A document of the index."""

    name: str
    url: str
    title: str
    digest: str
    passages: int


class _Scored(NamedTuple):
    """The scores of passages by id."""

    coverage: dict[int, float]
    cosine: dict[int, float]
    same: dict[int, float]


class Knowledge:
    """An opened artifact; thread-safe. Without `encoder` it searches by words only, though it may have vectors."""

    def __init__(self, directory: Path, lineage: Lineage, manifest: Manifest, encoder: Encoder | None) -> None:
        self.path, self.lineage, self.manifest = directory, lineage, manifest
        self._encoder = encoder
        self._idle: SimpleQueue[tuple[sqlite3.Connection, Lexical]] = SimpleQueue()
        self.partitions = self._read_partitions()
        questions = sum(one.last_question - one.first_question + 1 for one in self.partitions)
        self._vectors = None
        if manifest.encoder is not None and encoder is not None:
            rows = manifest.passages + questions
            self._vectors = Vectors(directory / VECTORS, rows, manifest.encoder.dimension)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        encoder: Callable[[EncoderRecord], Encoder] | None = None,
        words_only: bool = False,
        digests: FileDigests | None = None,
    ) -> Self:
        """Verify every file against the lineage and open them; raises ArtifactError.

        `encoder` loads the one that the manifest names, by default `load_encoder`; with `words_only` none is loaded.
        """
        lineage = lineage_record.read(directory)
        if not lineage.is_knowledge:
            raise ArtifactError(f"{directory} is a model and no knowledge: make one with `secateur knowledge build`")
        lineage_record.verify(directory, lineage, digests)
        manifest = record.read(directory)
        if manifest.encoder is None or words_only:
            return cls(directory, lineage, manifest, None)
        return cls(directory, lineage, manifest, (encoder or load_encoder)(manifest.encoder))

    @property
    def thresholds(self) -> Thresholds:
        """The calibrated limits of relevance and of equal questions."""
        return self.manifest.thresholds

    def search(
        self, question: str, limit: int = 5, groups: frozenset[str] = EVERYONE, *, ranking: Ranking | None = None
    ) -> list[Found]:
        """The `limit` passages that answer `question` best, best first, that a visitor in `groups` may see.

        `ranking` is by default the artifact's. Nothing is found for a question without words.
        """
        visible = [partition for partition in self.partitions if partition.visible(groups)]
        question = question.replace("\x00", " ")
        if not visible or not question.strip():
            return []
        query = self._encoded(question)
        with self._connection() as (connection, lexical):
            coverage = {hit.id: hit.coverage for hit in lexical.search(question, visible, DEPTH)}
            scored = _Scored(coverage, *self._near(connection, query, visible))
            self._compare_words(connection, lexical, question, scored)
            scores = self._joined(scored, ranking or self.manifest.ranking, query)
            best = sorted(scores, key=lambda id: (-scores[id], -scored.cosine.get(id, 0.0), id))[:limit]
            return [self._found(connection, id, scores[id], scored, query) for id in best]

    def compare(self, question: str, texts: Sequence[str]) -> list[float]:
        """How near each text is to `question`: the cosine of their vectors, or without an encoder shared words."""
        query = self._encoded(question) if texts else None
        if self._encoder is None or query is None:
            asked = frozenset(WORD.findall(question.lower())) - STOP_WORDS
            return [len(asked & frozenset(WORD.findall(text.lower()))) / max(1, len(asked)) for text in texts]
        prompt = self._prompt("document_prompt")
        vectors = unit(self._encoder.encode([prompt + text for text in texts]).vectors)
        return [float(cosine) for cosine in vectors @ query]

    def documents(self) -> Iterator[Listed]:
        """Every document, in the order of the sources."""
        with self._connection() as (connection, _):
            rows = connection.execute("SELECT name, url, title, digest, passages FROM documents ORDER BY id")
            yield from (Listed(*row) for row in rows.fetchall())

    def _found(
        self, connection: sqlite3.Connection, id: int, score: float, scored: _Scored, query: Vector | None
    ) -> Found:
        statement = (
            "SELECT text, title, passages.url, headings, question FROM passages JOIN documents"
            " ON documents.id = document WHERE passages.id = ?"
        )
        [(text, title, url, headings, question)] = connection.execute(statement, (id,))
        passage = Passage(text, title, url, msgspec.json.decode(headings, type=tuple[str, ...]), question)
        coverage, cosine = scored.coverage.get(id, 0.0), self._cosine(id, scored, query)
        relevance = coverage if cosine is None else cosine
        return Found(id, passage, score, relevance, coverage, cosine, scored.same.get(id, 0.0))

    def _joined(self, scored: _Scored, ranking: Ranking, query: Vector | None) -> dict[int, float]:
        """The score of each candidate of either ranking."""
        if query is None or ranking == "words":
            return dict(scored.coverage)
        if ranking == "vectors":
            return dict(scored.cosine)
        if ranking == "ranks":
            return by_rank([list(scored.coverage), list(scored.cosine)])
        candidates = dict.fromkeys((*scored.cosine, *scored.coverage))
        cosines = {id: self._cosine(id, scored, query) or 0.0 for id in candidates}
        return by_score(cosines, scored.coverage)

    def _cosine(self, id: int, scored: _Scored, query: Vector | None) -> float | None:
        """The cosine of a passage, None without vectors."""
        if query is None or self._vectors is None:
            return None
        return scored.cosine[id] if id in scored.cosine else self._vectors.cosine(query, id - 1)

    def _prompt(self, kind: Literal["query_prompt", "document_prompt"]) -> str:
        """What the encoder wants before a text of this kind."""
        prompt: str = getattr(getattr(self._encoder, "recipe", None), kind, "")
        return prompt

    def _encoded(self, question: str) -> Vector | None:
        if self._encoder is None or self._vectors is None:
            return None
        vectors: Vector = unit(self._encoder.encode([self._prompt("query_prompt") + question]).vectors)
        first: Vector = vectors[0]
        return first

    def _near(
        self, connection: sqlite3.Connection, query: Vector | None, visible: Sequence[Partition]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Cosines of the nearest passages by id, best first, and of their stored questions."""
        if query is None or self._vectors is None:
            return {}, {}
        spans = [(one.first - 1, one.last) for one in visible]
        cosines = {row + 1: cosine for row, cosine in self._vectors.best(query, spans, DEPTH)}
        start = self.manifest.passages
        spans = [(start + one.first_question - 1, start + one.last_question) for one in visible]
        same: dict[int, float] = {}
        for row, cosine in self._vectors.best(query, spans, DEPTH):
            [(passage,)] = connection.execute("SELECT passage FROM questions WHERE id = ?", (row - start + 1,))
            same[passage] = max(cosine, same.get(passage, -1.0))
            cosines[passage] = max(cosine, cosines.get(passage, -1.0))
        best = sorted(cosines, key=lambda id: (-cosines[id], id))[:DEPTH]
        return {id: cosines[id] for id in best}, same

    def _compare_words(self, connection: sqlite3.Connection, lexical: Lexical, question: str, scored: _Scored) -> None:
        """Without vectors: compare the stored questions of the best passages with `question` by their words."""
        if self._vectors is not None:
            return
        for id in list(scored.coverage)[:COMPARED]:
            [(stored,)] = connection.execute("SELECT question FROM passages WHERE id = ?", (id,))
            if stored:
                partition = next(one for one in self.partitions if one.first <= id <= one.last)
                scored.same[id] = lexical.same(partition, question, stored)

    @contextmanager
    def _connection(self) -> Iterator[tuple[sqlite3.Connection, Lexical]]:
        """A connection that no other thread uses, opened if there is none."""
        try:
            try:
                pair = self._idle.get_nowait()
            except Empty:
                connection = self._open()
                pair = connection, Lexical(connection, self.partitions)
            yield pair
            self._idle.put(pair)
        except sqlite3.Error as error:
            raise ArtifactError(f"{self.path / INDEX} cannot be searched: {error}; build the knowledge anew") from None

    def _open(self) -> sqlite3.Connection:
        name = f"{(self.path / INDEX).absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False)
        for pragma in ("temp_store = MEMORY", f"mmap_size = {MAPPED}", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _read_partitions(self) -> tuple[Partition, ...]:
        try:
            connection = self._open()
            found = read_partitions(connection)
            connection.close()
        except sqlite3.Error as error:
            raise ArtifactError(f"{self.path / INDEX} is not the index of a knowledge: {error}") from None
        return found


def load_encoder(wanted: EncoderRecord, threads: int = 1) -> Encoder:
    """The encoder that a manifest names; raises ArtifactError if its digest is not the recorded one."""
    from server.engine.runners import encoder, encoder_files  # late: torch takes seconds

    path = located(wanted.reference)
    if encoder_files.digest(path) != wanted.digest:
        raise ArtifactError(
            f"{wanted.reference} is not the encoder that made the vectors: its digest is not {wanted.digest[:16]}...; "
            "install that one, or build the knowledge anew"
        )
    return encoder.Encoder.open(path, threads=threads)
