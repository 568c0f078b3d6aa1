"""The lineage record: what an artifact was made from, how, and what was measured before and after.

It is written once, with the weights, and names the SHA-256 of every other file of the artifact. Fields at their
defaults are not written, so that a field added later leaves the addresses of older records as they are.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from server.errors import ArtifactError
from server.storage.digests import FileDigests

FILE = "lineage.json"
WEIGHTS = "model.safetensors"
"""The file of an artifact's weights."""
SIGNATURE = "model.sig"
"""Beside the record and not named in it: it signs the record too."""


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The model that pruning started from."""

    name: str
    digest: str
    """SHA-256 of the source: of its one file, or of the sorted lines `digest  name` of its files."""
    note: str = ""
    """What a reader must know of the source, e.g. that it was 4-bit already."""
    license: str = ""


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Token ids drawn from a text: `digest` is the SHA-256 of the ids themselves, as little-endian int64."""

    source: str
    digest: str
    sequences: int
    tokens: int
    """Tokens in each sequence."""
    seed: int


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One kind of text that was trained on, with its own held-out loss."""

    name: str
    training: Data
    """All there is to read; `tokens` of the domain says how much was read."""
    held_out: Data
    reference: float
    """The base's loss."""
    before: float
    after: float
    """At the step that is `after` of the whole."""
    tokens: int
    """Tokens trained on, repetitions included."""
    weight: float
    """Its share of the batches at the end."""


class Recovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Training after pruning, or while it is learnt what to prune: how much, on what, and how it scored elsewhere."""

    training: Data
    held_out: Data
    tokens: int
    """Tokens trained on, repetitions included."""
    flops: float
    formula: str
    """How `flops` were reckoned."""
    precision: str
    measure: str
    """What `before` and `after` are; lower is better."""
    before: float
    after: float
    """The best that training reached, kept or not."""
    rolled_back: bool
    """Whether nothing trained was kept, since nothing scored better than the start."""
    pretraining_ratio: float | None = None
    """`tokens` as a fraction of those that the base was trained on, where the recipe says how many."""
    domains: tuple[Domain, ...] = ()
    """What the texts were made of, where the recipe names domains."""


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one step changed in the outputs of one linear layer on the calibration data, and what explains it."""

    error: float
    """||(W - V) X||^2 / ||W X||^2, with W the weight before the step and V the one after it."""
    measure: Literal["gram", "diagonal", "weights"]
    """Of the inputs X it knows their Gram matrix, so that the error is exact; their norms alone; or nothing."""
    removed: float
    """The share of sum W_ij^2 x_j^2 that lay in the weights that became zero."""
    outliers: float
    """The share of the weights whose |W| x input norm is above five times the mean."""
    rank: float | None = None
    """Effective rank of the Gram matrix over its size: near 0, inputs can stand in for each other; near 1, hardly."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One stage of the recipe as it was carried out."""

    technique: str
    options: dict[str, Any]
    sparsity: dict[str, float]
    """Fraction of exact zeros that each weight ended with."""
    seconds: float
    parameters: int
    """Parameters of the model after this step, zeros included."""
    removed_blocks: tuple[int, ...] = ()
    """Blocks taken out, by their numbers in the model that the step received."""
    recovery: Recovery | None = None
    losses: dict[str, Loss] = {}
    """What each weight that was changed one layer at a time lost."""
    parent_digest: str = ""
    """Of the weights that the step began from, as `weights_digest` computes it."""
    digest: str = ""
    """Of the weights that it made: the next step's `parent_digest`."""


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether an artifact kept to all that a task demands, and what was measured there."""

    task: str
    passed: bool
    figures: dict[str, float] = {}


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Perplexity and bytes of the dense base, of the artifact, and of the quantised base of about equal bytes."""

    data: Data
    window: int
    """Tokens in each non-overlapping window."""
    perplexity: dict[str, float]
    bytes: dict[str, int]
    note: str = ""
    """What a reader must know of how the artifact was measured."""
    gates: tuple[GateResult, ...] = ()


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole record of one artifact."""

    created: str
    """UTC, ISO 8601."""
    base: Base
    recipe: dict[str, Any]
    steps: tuple[Step, ...]
    versions: dict[str, str]
    inputs: dict[str, str] = {}
    """SHA-256 of all that decides the result: the recipe, the base, the ids drawn, the texts trained on."""
    calibration: Data | None = None
    evaluation: Evaluation | None = None
    files: dict[str, str] = {}
    """SHA-256 of each file of the artifact but this record."""
    parent: "Lineage | None" = None
    """The whole record of the artifact that was the base, where it was one of ours."""
    parent_digest: str = ""
    """The address of `parent`."""
    version: int = 1


def read(directory: Path) -> Lineage:
    """The record in `directory`; raises ArtifactError where it is missing or not a lineage record."""
    path = directory / FILE
    try:
        return decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is no artifact: it has no {FILE}; make one with `secateur prune`") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def decoded(content: bytes, path: Path) -> Lineage:
    """The record that `content` of the file `path` is; raises ArtifactError for anything else."""
    try:
        return msgspec.json.decode(content, type=Lineage)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a lineage record: {error}") from None


def encoded(lineage: Lineage) -> bytes:
    """The record as its file has it; raises ArtifactError for one that could not be read, as JSON has no NaN."""
    content = msgspec.json.encode(lineage, order="sorted")
    try:
        msgspec.json.decode(content, type=Lineage)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"a figure of the record is not finite, so nothing is written: {error}") from None
    return msgspec.json.format(content, indent=2)


def address(lineage: Lineage) -> str:
    """The content address: SHA-256 of the canonical JSON, keys sorted and without spaces; equal for equal records."""
    return hashlib.sha256(msgspec.json.encode(lineage, order="sorted")).hexdigest()


def digest_of(path: Path, digests: FileDigests | None = None) -> str:
    """SHA-256 of a file, in hexadecimal, from `digests` if that knows it; raises ArtifactError if it cannot be read."""
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no file; remove it, or make the artifact again")
    try:
        return (digests or FileDigests()).of(path)
    except PermissionError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def verify(directory: Path, lineage: Lineage, digests: FileDigests | None = None) -> None:
    """Raise ArtifactError, naming the file, unless `directory` holds exactly the files that `lineage` records.

    A file that the record does not name is refused too: a planted chat template would speak for the model. Files that
    `digests` knows are not read again.
    """
    digests = digests or FileDigests()
    present = {path.name for path in directory.iterdir()} - {FILE, SIGNATURE}
    for name in sorted(present | lineage.files.keys()):
        if name not in lineage.files:
            raise ArtifactError(f"{directory / name} is not named in {FILE}; remove it, or make the artifact again")
        if name not in present:
            raise ArtifactError(f"{directory / name} is missing, though {FILE} names it; copy the artifact again")
        if digest_of(directory / name, digests) != lineage.files[name]:
            raise ArtifactError(f"{directory / name} was changed: its SHA-256 is not the one that {FILE} records")


def schema() -> bytes:
    """The JSON Schema of a record, as `lineage.schema.json` beside this file has it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Lineage), order="sorted"), indent=2) + b"\n"
