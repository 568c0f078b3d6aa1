"""The files of a knowledge artifact: its manifest, and the parts of its lineage."""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from server.artifact.checkpoint.lineage import KNOWLEDGE as MANIFEST
from server.errors import ArtifactError

INDEX = "index.sqlite3"
VECTORS = "vectors.npy"
FORMAT = 1

Measure = Literal["cosine", "coverage"]
Ranking = Literal["scores", "ranks", "vectors", "words"]


class EncoderRecord(Struct, frozen=True, omit_defaults=True):
    """The encoder of the vectors."""

    reference: str
    """A directory, or `package:module/directory`."""
    digest: str
    """SHA-256 of its files."""
    dimension: int


class Thresholds(Struct, frozen=True, omit_defaults=True):
    """The calibrated limits, compared with `Found.relevance` and `Found.same_question`."""

    on_topic: float
    """A question whose best passage has less relevance is off topic."""
    same_question: float
    """A stored question with at least this similarity asks the same."""
    measure: Measure
    """What relevance is: the cosine of vectors, or the share of the question's words that a passage covers."""


class Calibration(Struct, frozen=True, omit_defaults=True):
    """How the thresholds were found, and what they did on the questions that they were found with."""

    on_topic: int
    """Questions from the documents' own headings and stored questions, each without its own heading."""
    off_topic: int
    """Questions of the package's fixed list."""
    on_topic_refused: float
    """Share of the first below `Thresholds.on_topic`."""
    off_topic_refused: float
    """Share of the second below it."""
    on_topic_median: float = 0.0
    off_topic_median: float = 0.0
    off_topic_highest: float = 0.0
    note: str = ""


class Failure(Struct, frozen=True, omit_defaults=True):
    """A document that could not be read, and why."""

    document: str
    reason: str
    kept: bool = False
    """Whether its text from an earlier build is still part of the knowledge."""


class Manifest(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a search needs beside index and vectors."""

    name: str
    documents: int
    passages: int
    files: dict[str, str]
    """SHA-256 of index and vectors, so that this file's digest covers everything that is searched."""
    thresholds: Thresholds
    calibration: Calibration
    encoder: EncoderRecord | None = None
    ranking: Ranking = "scores"
    """How passages are ordered, as `Settings.ranking`."""
    failed: tuple[Failure, ...] = ()
    format: int = FORMAT


def read(directory: Path) -> Manifest:
    """The manifest in `directory`; raises ArtifactError if it is missing, malformed or of a later format."""
    path = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ArtifactError(
            f"{directory} is not a knowledge: it has no {MANIFEST}; make one with `secateur knowledge build`"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a manifest of a knowledge: {error}") from None
    if manifest.format != FORMAT:
        raise ArtifactError(f"{path} has the format {manifest.format}; this program reads {FORMAT}: build it anew")
    return manifest


def encoded(manifest: Manifest) -> bytes:
    """The content of the manifest's file."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
