"""Gathers everything that decides a result, and checks whether an existing artifact was made from the same inputs.

Imports no model code, so a reusable artifact is found in about a second.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data.documents import digest_of_source
from pruning.data.draw import Draw, data_record, draw
from pruning.data.encoder import Encoder
from pruning.data.mixing import mixed, shares
from pruning.data.self_calibration import sample_base
from pruning.model.source import Source
from pruning.model.weights import WeightSource
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import Calibration, Evaluation, Recipe
from pruning.recipe.sources import OFF_GRID, SELF, digest_with_template, locate
from pruning.recipe.texts import WeightedText
from pruning.recipe.training import Training
from pruning.stages.preflight import lengths, refuse_long, shared_texts
from server.artifact.checkpoint import lineage
from server.artifact.checkpoint.reader import Artifact
from server.errors import ArtifactError
from server.storage.digests import FileDigests
from server.storage.lock import locked

logger = logging.getLogger(__name__)

THREADS = "threads"
"""The key of the number of threads in a run's identity."""


class EvaluationWindows(NamedTuple):
    """The windows of one text that perplexity is measured on."""

    name: str
    ids: Tensor
    """Token ids [windows, tokens]."""
    data: lineage.Data


class Inputs(NamedTuple):
    """Everything that decides the result of a run."""

    recipe: Recipe
    base: Artifact
    calibration: tuple[Tensor, lineage.Data]
    evaluation: tuple[EvaluationWindows, ...]
    text_digests: dict[str, str]
    """SHA-256 of each text that a training or vocabulary stage reads, by source."""

    def with_base(self, base: Artifact) -> "Inputs":
        """These inputs for stages that work on another base's tokens: the calibration is drawn anew in its ids."""
        return self._replace(base=base, calibration=_calibration(self.recipe.calibration, base, Encoder(base)))

    @property
    def identity(self) -> dict[str, str]:
        """Digests of all inputs and the number of threads, by name; equal for two runs that give the same artifact.

        Sums in another order differ in their last bits, which decides ties between weights. Stored in the lineage.
        """
        return {
            "recipe": self.recipe.digest,
            "base": self.base.lineage.base.digest,
            "calibration": self.calibration[1].digest,
            **{f"evaluation {windows.name}".strip(): windows.data.digest for windows in self.evaluation},
            **{f"text {source}": digest for source, digest in self.text_digests.items()},
            THREADS: str(torch.get_num_threads()),
        }


def prepare(recipe: Recipe, cache: Path) -> Inputs:
    """Import the base into `cache` and draw the token ids; raises RecipeError or DataError."""
    base = base_of(recipe, cache)
    encoder = Encoder(base)
    refuse_long(lengths(recipe), base.config)
    own = recipe.calibration.texts
    warn_of_shared_texts("calibration", own, recipe)
    calibration = _calibration(recipe.calibration, base, encoder)
    readers = [stage for stage in recipe.stages if isinstance(stage, Training | Vocabulary)]
    texts = {source for stage in readers for source in stage.named_sources}
    texts |= {text.source for text in own} if readers else set()
    evaluation = _evaluation(recipe.evaluation, encoder)
    return Inputs(
        recipe, base, calibration, evaluation, {source: digest_of_source(source) for source in sorted(texts - {SELF})}
    )


def warn_of_shared_texts(what: str, texts: Iterable[WeightedText], recipe: Recipe) -> None:
    """Log `shared_texts`."""
    for sentence in shared_texts(what, texts, recipe):
        logger.warning("%s", sentence)


def _calibration(wanted: Calibration, base: Artifact, encoder: Encoder) -> tuple[Tensor, lineage.Data]:
    """The calibration ids [sequences, tokens]: drawn from texts and mixed, or sampled from the base itself."""
    parts = []
    for text, count in zip(wanted.texts, shares(wanted.texts, wanted.sequences, "sequences"), strict=True):
        if text.source == SELF:
            ids = sample_base(base, count, wanted.tokens, wanted.seed)
            parts.append((ids, data_record(SELF, ids, wanted.seed)))
        else:
            parts.append(draw(Draw(text.source, text.buckets, count, wanted.tokens, wanted.seed), encoder))
    return mixed(parts)


def _evaluation(wanted: Evaluation, encoder: Encoder) -> tuple[EvaluationWindows, ...]:
    """The windows of every text of an evaluation."""
    count = max(wanted.tokens // wanted.window, 1)
    return tuple(
        EvaluationWindows(text.name, *draw(Draw(text.source, text.buckets, count, wanted.window, wanted.seed), encoder))
        for text in wanted.every
    )


def reusable(output: Path, inputs: Inputs) -> Artifact | None:
    """The artifact at `output` if it is intact and was made from the same recipe, base and data; else None.

    One made with another number of threads is kept.
    """
    if not (output / lineage.FILE).exists():
        return None
    try:
        artifact = Artifact.open(output)
    except ArtifactError as error:
        logger.info("%s; starting over", error)
        return None
    made, wanted = dict(artifact.lineage.inputs), inputs.identity
    threads, ours = made.pop(THREADS, None), wanted.pop(THREADS)
    if made != wanted or artifact.lineage.evaluation is None:
        logger.info("%s was made with another recipe or other data: starting over", output)
        return None
    if threads != ours:
        logger.info(
            "%s was made with %s threads and is kept; %s would give slightly other figures", output, threads, ours
        )
    return artifact


def base_of(recipe: Recipe, cache: Path) -> Artifact:
    """The recipe's base with the recipe's chat template, imported into `cache` unless it is there already."""
    return base_artifact(recipe.base, cache, recipe.chat_template)


def base_artifact(reference: str, cache: Path, template: str = "") -> Artifact:
    """The base artifact of `reference`, or its off-grid copy, imported into `cache` unless it is there already.

    `template` names a Jinja file that is used in place of the base's own chat template; its digest is part of the
    base's, so that both are never mistaken for each other.
    """
    if reference.startswith(OFF_GRID):
        return _off_grid(base_artifact(reference.removeprefix(OFF_GRID), cache, template), cache)
    path, given = locate(reference), locate(template) if template else None
    digest = digest_with_template(path, given)
    target = cache / f"{path.resolve().name.removesuffix('.gguf')}-{digest[:12]}"
    if found := _imported(target):
        return found
    from pruning.model.base import import_base  # imports transformers, which takes seconds

    with locked(cache / ".lock", f"importing a model into {cache}", wait=True):
        if found := _imported(target):  # another process imported it meanwhile, and may be reading it
            return found
        logger.info("importing %s", path)
        digests = FileDigests()
        import_base(Source(path, digest, given), target, digests)
    return Artifact.open(target, digests=digests)


def own_grids(inputs: Inputs) -> WeightSource:
    """The base's weights; those of a GGUF file have the file's own grids as scales."""
    reference, base = inputs.recipe.base, inputs.base
    if reference.startswith(OFF_GRID) or (path := locate(reference)).suffix != ".gguf":
        return base
    from pruning.model.gguf_grid import OnOwnGrid  # the reader of GGUF files

    return OnOwnGrid(base, path, base.config)


def _off_grid(base: Artifact, cache: Path) -> Artifact:
    """The off-grid copy of `base`, made in `cache` unless it is there already."""
    target = cache / f"{base.path.name}-off-grid"
    if found := _imported(target):
        return found
    from pruning.model.off_grid import write_off_grid

    with locked(cache / ".lock", f"importing a model into {cache}", wait=True):
        if found := _imported(target):
            return found
        write_off_grid(base, target)
    return Artifact.open(target)


def _imported(target: Path) -> Artifact | None:
    """The base already imported at `target`, or None if it is missing or damaged."""
    try:
        return Artifact.open(target) if target.exists() else None
    except ArtifactError as error:
        logger.info("%s; importing it again", error)
        return None
