"""Measures the questions that thresholds are calibrated with, by words or by vectors."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from server.knowledge.build.encoding import Vectoriser
from server.knowledge.calibration import thresholds
from server.knowledge.index import schema
from server.knowledge.index.lexical import Lexical, read_partitions
from server.knowledge.index.schema import Entry, Row
from server.knowledge.record import INDEX, Calibration, Thresholds


def by_words(found: Sequence[Entry], rows: Sequence[Row]) -> tuple[Thresholds, Calibration]:
    """Thresholds of coverage, from an index in which no probe's passage has the heading or question that is asked."""
    probes = thresholds.probes(rows)
    held_out = list(rows)
    for probe in probes:
        row = rows[probe.row]
        headings = tuple(heading for heading in row.passage.headings if heading != probe.question)
        passage = msgspec.structs.replace(row.passage, headings=headings, question="")
        held_out[probe.row] = Row(row.entry, passage)
    with TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        schema.write(path, found, held_out)
        connection = sqlite3.connect(path, isolation_level=None)
        partitions = read_partitions(connection)
        lexical = Lexical(connection, partitions)

        def best(question: str) -> float:
            return max((hit.coverage for hit in lexical.search(question, list(partitions), 1)), default=0.0)

        on_topic = [best(probe.question) for probe in probes]
        off = [best(question) for question in thresholds.off_topic()]
        connection.close()
    return thresholds.calibrated(on_topic, off, [], "coverage")


def by_vectors(
    rows: Sequence[Row], vectoriser: Vectoriser, encode: Callable[[Sequence[str]], int]
) -> tuple[Thresholds, Calibration, list[str]]:
    """Thresholds of cosine, and the texts that were encoded for them by `encode`."""
    probes = thresholds.probes(rows)
    asked = [vectoriser.query_prompt + probe.question for probe in probes]
    rests = [vectoriser.document_prompt + probe.rest for probe in probes]
    off = [vectoriser.query_prompt + question for question in thresholds.off_topic()]
    texts = [*asked, *rests, *off]
    encode(texts)
    passages = vectoriser.vectors(vectoriser.passages(rows))
    own = [probe.row for probe in probes]
    on_topic = thresholds.relevance(vectoriser.vectors(asked), vectoriser.vectors(rests), passages, own)
    best_off = [float((passages @ vector).max()) for vector in vectoriser.vectors(off)]
    others = thresholds.nearest_questions(vectoriser.vectors(vectoriser.questions(rows)))
    found, calibration = thresholds.calibrated(on_topic, best_off, others, "cosine")
    return found, calibration, texts
