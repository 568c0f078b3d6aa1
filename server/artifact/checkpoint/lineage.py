"""The lineage record: what an artifact was made from, how, and the measurements before and after.

It holds the SHA-256 of every other file of the artifact. Fields at their defaults are not written, so a field added
later does not change the addresses of older records.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from server.errors import ArtifactError
from server.storage.digests import FileDigests

FILE = "lineage.json"
WEIGHTS = "model.safetensors"
"""The weights file of an artifact."""
KNOWLEDGE = "knowledge.json"
"""The manifest of a knowledge artifact, which has an index in place of weights."""
SIGNATURE = "model.sig"
"""The signature, which also signs the record and is therefore not named in it."""


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The model that pruning started from."""

    name: str
    digest: str
    """SHA-256 of the source: of its only file, or of the sorted lines `digest  name` of its files."""
    note: str = ""
    """A caveat of the source, such as that it was already 4-bit."""
    license: str = ""


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Token ids drawn from a text; `digest` is the SHA-256 of the ids as little-endian int64."""

    source: str
    digest: str
    sequences: int
    tokens: int
    """Tokens in each sequence."""
    seed: int
    parts: tuple["Data", ...] = ()
    """The sources of a mixture, each with the digest of its own ids; `source` then lists their names."""


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One domain of the training texts, with its own held-out loss."""

    name: str
    training: Data
    """All its data; the domain's `tokens` says how much was used."""
    held_out: Data
    reference: float
    """The base's loss."""
    before: float
    after: float
    """The loss at the step that `Recovery.after` was measured at."""
    tokens: int
    """Tokens trained on, repetitions included."""
    weight: float
    """Its share of the batches at the end."""


class Recovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Training after pruning, or training that learns what to prune: its data, cost and held-out score."""

    training: Data
    held_out: Data
    tokens: int
    """Tokens trained on, repetitions included."""
    flops: float
    formula: str
    """How `flops` were computed."""
    precision: str
    measure: str
    """What `before` and `after` are; lower is better."""
    before: float
    after: float
    """The best score that training reached, kept or not."""
    rolled_back: bool
    """Whether the trained weights were discarded because none scored better than the start."""
    pretraining_ratio: float | None = None
    """`tokens` over the base's training tokens, if the recipe gives their number."""
    domains: tuple[Domain, ...] = ()
    """The domains of the texts, if the recipe names any."""


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The change that one step made to the outputs of a linear layer on the calibration data, and its causes."""

    error: float
    """||(W - V) X||^2 / ||W X||^2, with W the weight before the step and V the one after it."""
    measure: Literal["gram", "diagonal", "weights"]
    """What is known of the inputs X: their Gram matrix (the error is exact), their norms only, or nothing."""
    removed: float
    """The fraction of sum W_ij^2 x_j^2 in the weights that became zero."""
    outliers: float
    """The fraction of weights whose |W| x input norm is above five times the mean."""
    rank: float | None = None
    """Effective rank of the Gram matrix over its size: near 0, the inputs are redundant; near 1, independent."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stage of the recipe as it was carried out."""

    technique: str
    options: dict[str, Any]
    sparsity: dict[str, float]
    """Fraction of exact zeros in each weight after the step."""
    seconds: float
    parameters: int
    """Parameters of the model after this step, zeros included."""
    removed_blocks: tuple[int, ...] = ()
    """Removed blocks, by their numbers in the model before the step."""
    recovery: Recovery | None = None
    losses: dict[str, Loss] = {}
    """The loss of each weight that was changed one layer at a time."""
    parent_digest: str = ""
    """`weights_digest` of the weights before the step."""
    digest: str = ""
    """`weights_digest` of the weights after the step: the next step's `parent_digest`."""


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether an artifact passed all gates of a task, with the figures and limits."""

    task: str
    passed: bool
    figures: dict[str, float] = {}


class EvaluatedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Perplexity on one text, by model."""

    name: str
    data: Data
    perplexity: dict[str, float]


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Perplexity and bytes of the base as found, at 16 bits ("dense") and at int8, and of the artifact ("pruned")."""

    data: Data
    window: int
    """Tokens in each non-overlapping window."""
    perplexity: dict[str, float]
    bytes: dict[str, int]
    note: str = ""
    """A caveat of how the artifact was measured."""
    gates: tuple[GateResult, ...] = ()
    name: str = ""
    """Name of the first text, which `data` and `perplexity` are of; empty where there is only one."""
    others: tuple[EvaluatedText, ...] = ()
    """The other texts, measured on windows of the same length."""

    @property
    def texts(self) -> tuple[EvaluatedText, ...]:
        """Every text with its perplexities, the first included."""
        return (EvaluatedText(self.name, self.data, self.perplexity), *self.others)


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole record of one artifact."""

    created: str
    """UTC, ISO 8601."""
    base: Base
    recipe: dict[str, Any]
    steps: tuple[Step, ...]
    versions: dict[str, str]
    inputs: dict[str, str] = {}
    """SHA-256 of everything that determines the result: recipe, base, drawn ids, training texts."""
    calibration: Data | None = None
    evaluation: Evaluation | None = None
    files: dict[str, str] = {}
    """SHA-256 of each file of the artifact, except this record."""
    parent: "Lineage | None" = None
    """The record of the base, if the base was an artifact."""
    parent_digest: str = ""
    """The address of `parent`."""
    thresholds: dict[str, Any] = {}
    """The calibrated thresholds of a knowledge, and how they were found."""
    version: int = 1

    @property
    def is_knowledge(self) -> bool:
        """Whether the artifact is an index of documents and no model."""
        return KNOWLEDGE in self.files and WEIGHTS not in self.files

    @property
    def subject(self) -> str:
        """SHA-256 of the file that results of evaluation are about: a model's weights, or a knowledge's manifest."""
        return self.files[KNOWLEDGE if self.is_knowledge else WEIGHTS]


def read(directory: Path) -> Lineage:
    """The record in `directory`; raises ArtifactError if it is missing or malformed."""
    path = directory / FILE
    try:
        return decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise ArtifactError(
            f"{directory} is not an artifact: it has no {FILE}; make one with `secateur prune`"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def decoded(content: bytes, path: Path) -> Lineage:
    """Decode a record from the `content` of the file `path`; raises ArtifactError if it is malformed."""
    try:
        return msgspec.json.decode(content, type=Lineage)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a lineage record: {error}") from None


def encoded(lineage: Lineage) -> bytes:
    """The content of the record's file; raises ArtifactError if a figure is not finite, as JSON has no NaN."""
    content = msgspec.json.encode(lineage, order="sorted")
    try:
        msgspec.json.decode(content, type=Lineage)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"a figure of the record is not finite, so nothing is written: {error}") from None
    return msgspec.json.format(content, indent=2)


def address(lineage: Lineage) -> str:
    """The content address of a record: SHA-256 of its canonical JSON, with sorted keys and no spaces."""
    return hashlib.sha256(msgspec.json.encode(lineage, order="sorted")).hexdigest()


def digest_of(path: Path, digests: FileDigests | None = None) -> str:
    """SHA-256 of a file, in hexadecimal, from `digests` if that knows it; raises ArtifactError if it cannot be read."""
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is not a file; remove it, or make the artifact again")
    try:
        return (digests or FileDigests()).of(path)
    except PermissionError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def verify(directory: Path, lineage: Lineage, digests: FileDigests | None = None) -> None:
    """Raise ArtifactError, naming the file, unless `directory` holds exactly the files that `lineage` records.

    Unrecorded files are refused too, since a planted chat template would change the replies. Files that `digests` knows
    are not read again.
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
    """The JSON Schema of a record; `lineage.schema.json` beside this file is a copy."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Lineage), order="sorted"), indent=2) + b"\n"
