"""Writes a knowledge artifact whole or not at all; the same passages and vectors give the same files."""

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from server.artifact.checkpoint import lineage as lineage_record
from server.artifact.checkpoint.lineage import KNOWLEDGE, Base, Lineage
from server.errors import ArtifactError, KnowledgeError
from server.knowledge import record
from server.knowledge.index import schema, vectors
from server.knowledge.index.schema import Entry, Row
from server.knowledge.index.vectors import Vector
from server.knowledge.record import INDEX, VECTORS, Calibration, EncoderRecord, Failure, Manifest, Ranking, Thresholds
from server.storage.files import publish, sync_folder


class Content(Struct, frozen=True):
    """Everything that becomes an artifact."""

    name: str
    entries: Sequence[Entry]
    rows: Sequence[Row]
    """The passages of `entries` as `schema.ordered` returns them."""
    thresholds: Thresholds
    calibration: Calibration
    settings: Mapping[str, Any]
    """knowledge.toml, for the lineage."""
    versions: Mapping[str, str]
    encoder: EncoderRecord | None = None
    ranking: Ranking = "scores"
    vectors: Vector | None = None
    """Unit vectors of all rows, then of their stored questions."""
    failed: Sequence[Failure] = ()


def write(content: Content, output: Path) -> bool:
    """Publish `content` at `output`; False, changing nothing, if the same files lie there already.

    Raises KnowledgeError if `output` holds something other than a knowledge.
    """
    existing = _existing(output)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        lineage = _lineage(content, _write_files(content, partial))
        if existing is not None and _same(existing, lineage):
            return False
        (partial / lineage_record.FILE).write_bytes(lineage_record.encoded(lineage))
        sync_folder(partial)
        publish(partial, output)
    except OSError as error:
        raise KnowledgeError(f"{error.filename or output} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def check_output(output: Path) -> None:
    """Raise KnowledgeError if `output` holds something other than a knowledge, which is not replaced."""
    _existing(output)


def _existing(output: Path) -> Lineage | None:
    """The record of the knowledge at `output`, None if there is nothing."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        lineage = lineage_record.read(output)
    except (ArtifactError, NotADirectoryError):
        lineage = None
    if lineage is None or not lineage.is_knowledge:
        raise KnowledgeError(f"{output} holds something other than a knowledge: name another --output")
    return lineage


def _same(existing: Lineage, made: Lineage) -> bool:
    return (existing.files, existing.recipe, existing.inputs) == (made.files, made.recipe, made.inputs)


def _write_files(content: Content, folder: Path) -> dict[str, str]:
    """Write index, vectors and manifest; returns the SHA-256 of each."""
    schema.write(folder / INDEX, content.entries, content.rows)
    files = {INDEX: lineage_record.digest_of(folder / INDEX)}
    if content.vectors is not None:
        vectors.write(folder / VECTORS, content.vectors)
        files[VECTORS] = lineage_record.digest_of(folder / VECTORS)
    manifest = Manifest(
        name=content.name,
        documents=len(content.entries),
        passages=len(content.rows),
        files=files,
        thresholds=content.thresholds,
        calibration=content.calibration,
        encoder=content.encoder,
        ranking=content.ranking,
        failed=tuple(content.failed),
    )
    (folder / KNOWLEDGE).write_bytes(record.encoded(manifest))
    return files | {KNOWLEDGE: lineage_record.digest_of(folder / KNOWLEDGE)}


def _lineage(content: Content, files: dict[str, str]) -> Lineage:
    inputs = {entry.name: entry.digest for entry in content.entries}
    whole = record.sha256("".join(f"{digest}  {name}\n" for name, digest in inputs.items()).encode())
    if content.encoder is not None:
        inputs["encoder"] = content.encoder.digest
    measured = {"thresholds": content.thresholds, "calibration": content.calibration}
    return Lineage(
        created=_now(),
        base=Base(content.name, whole, f"{len(content.entries)} documents"),
        recipe=dict(content.settings),
        steps=(),
        versions=dict(content.versions),
        inputs=inputs,
        files=files,
        thresholds=msgspec.to_builtins(measured),
    )


def _now() -> str:
    """The time of the record: now, or SOURCE_DATE_EPOCH for reproducible builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")
