"""`build`: from knowledge.toml to a published artifact, incrementally."""

import os
import shutil
import sqlite3
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy
from msgspec import Struct

from server.errors import KnowledgeError
from server.knowledge import search
from server.knowledge.build import writing
from server.knowledge.build.encoding import Vectoriser
from server.knowledge.build.journal import Journal
from server.knowledge.build.measuring import by_vectors, by_words
from server.knowledge.build.reading import Counts, entries, failures, read_all
from server.knowledge.build.writing import Content
from server.knowledge.index import schema
from server.knowledge.index.schema import Entry
from server.knowledge.readers.process import Reading
from server.knowledge.record import EncoderRecord, Failure
from server.knowledge.settings import Settings, as_record
from server.knowledge.sources.listing import listings
from server.progress import Progress
from server.storage.files import move, replaced
from server.storage.packages import PACKAGE, located

LIBRARIES = ("trafilatura", "lxml", "pypdf", "mammoth", "semantic_text_splitter")
"""What the extra `knowledge` installs."""
RECORDED = ("secateur", "trafilatura", "lxml", "pypdf", "mammoth", "semantic-text-splitter", "tokenizers", "torch")


class Built(Struct, frozen=True):
    """What a build did."""

    output: Path
    documents: int
    passages: int
    counts: Counts
    encoded: int
    """Texts that were encoded."""
    failed: Sequence[Failure]
    changed: bool
    """False if the artifact was already what the documents give."""


def build(settings: Settings, folder: Path, output: Path, *, shown: bool = True) -> Built:
    """Build the knowledge of `settings`, whose relative paths begin at `folder`, and publish it at `output`.

    A document that cannot be read is named in the result and the rest is built. Killed at any time, the next build
    goes on from the journal beside `output`. Raises ConfigError or KnowledgeError, changing no artifact.
    """
    _check_libraries()
    writing.check_output(_restored(output))
    encoder = _encoder(settings, folder)
    with Journal(journal_of(settings, output)) as journal:
        with Reading(megabytes=settings.reader_megabytes, seconds=settings.document_seconds) as reading:
            listed = listings(settings, folder, reading)
            with Progress("reading", max(1, len(listed.items)), shown=shown) as progress:
                counts = read_all(listed.items, settings, journal, reading, progress.step)
        found = list(entries(listed.items, settings, journal))
        failed = [*(Failure(name, why) for name, why in listed.failed.items()), *failures(listed.items, journal)]
        if not any(entry.passages for entry in found):
            raise KnowledgeError(_nothing(settings, failed))
        vectoriser = Vectoriser(encoder[0], encoder[1], journal, *encoder[2:]) if encoder is not None else None
        content, encoded = _content(settings, found, vectoriser, shown)
        changed = writing.write(_with_failures(content, failed), output)
    return Built(output, len(found), len(content.rows), counts, encoded, failed, changed)


def journal_of(settings: Settings, output: Path) -> Path:
    """The journal, which all outputs of one name in one folder share."""
    return output.absolute().parent / f".{settings.name}.journal.sqlite3"


def _content(
    settings: Settings, found: Sequence[Entry], vectoriser: Vectoriser | None, shown: bool
) -> tuple[Content, int]:
    """The artifact's content, without failures, and how many texts were encoded for it."""
    rows = schema.ordered(found)
    if vectoriser is None:
        thresholds, calibration = by_words(found, rows)
        matrix, encoded = None, 0
    else:
        passages, questions = vectoriser.passages(rows), vectoriser.questions(rows)
        encoded = _encode(vectoriser, [*passages, *questions], "encoding", shown)
        thresholds, calibration, texts = by_vectors(
            rows, vectoriser, lambda more: _encode(vectoriser, more, "calibrating", shown)
        )
        matrix = numpy.concatenate([vectoriser.vectors(passages), vectoriser.vectors(questions)])
        vectoriser.forget_others([*passages, *questions, *texts])
    content = Content(
        name=settings.name,
        entries=found,
        rows=rows,
        thresholds=thresholds,
        calibration=calibration,
        settings=as_record(settings),
        versions=_versions(),
        encoder=vectoriser.record if vectoriser else None,
        ranking=settings.ranking,
        vectors=matrix,
    )
    return content, encoded


def _encode(vectoriser: Vectoriser, texts: Sequence[str], what: str, shown: bool) -> int:
    """Encode the texts that have no vector yet; returns their number."""
    missing = vectoriser.missing(texts)
    with Progress(what, max(1, len(missing)), shown=shown and bool(missing)) as progress:
        vectoriser.encode(missing, progress.step)
    return len(missing)


def _encoder(settings: Settings, folder: Path) -> tuple[search.Encoder, EncoderRecord, str, str] | None:
    """The encoder with its record and prompts; raises ConfigError or ArtifactError if it cannot be loaded."""
    if not settings.encoder:
        return None
    from server.engine.runners import encoder, encoder_files  # late: torch takes seconds

    path = located(settings.encoder, folder)
    reference = settings.encoder if settings.encoder.startswith(PACKAGE) else str(path.resolve())
    made = encoder.Encoder.open(path, threads=len(os.sched_getaffinity(0)))
    record = EncoderRecord(reference, encoder_files.digest(path), made.dimension)
    return made, record, made.recipe.query_prompt, made.recipe.document_prompt


def _restored(output: Path) -> Path:
    """Put back what a build that was killed while it published had moved away; returns `output`."""
    old = replaced(output)
    if old.exists() and not output.exists():
        move(old, output)
    shutil.rmtree(old, ignore_errors=True)
    return output


def _check_libraries() -> None:
    if absent := [name for name in LIBRARIES if find_spec(name) is None]:
        raise KnowledgeError(f"{', '.join(absent)} is missing: run `pip install 'secateur[knowledge]'`")


def _versions() -> dict[str, str]:
    found = {"sqlite": sqlite3.sqlite_version}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _with_failures(content: Content, failed: Sequence[Failure]) -> Content:
    return msgspec.structs.replace(content, failed=tuple(failed))


def _nothing(settings: Settings, failed: Sequence[Failure]) -> str:
    """Why there is no passage at all."""
    if failed:
        return f"no document could be read; the first is {failed[0].document}: {failed[0].reason}"
    return f"no document was found in {', '.join(source.name for source in settings.sources)}"
