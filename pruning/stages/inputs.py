"""Gathers everything that decides a result, and checks whether an existing artifact was made from the same inputs.

Imports no model code, so a reusable artifact is found in about a second.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pruning.data.documents import digest_of_source
from pruning.data.draw import Draw, data_record, draw
from pruning.data.encoder import Encoder
from pruning.data.self_calibration import sample_base
from pruning.errors import RecipeError
from pruning.model.settings import positions
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import Calibration, Recipe
from pruning.recipe.sources import SELF, digest_of, locate
from pruning.recipe.training import Training
from server.artifact.checkpoint import lineage
from server.artifact.checkpoint.reader import Artifact
from server.errors import ArtifactError
from server.storage.digests import FileDigests
from server.storage.lock import locked

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """Everything that decides the result of a run."""

    recipe: Recipe
    base: Artifact
    calibration: tuple[Tensor, lineage.Data]
    evaluation: tuple[Tensor, lineage.Data]
    text_digests: dict[str, str]
    """SHA-256 of each text that a training or vocabulary stage reads, by source."""

    @property
    def identity(self) -> dict[str, str]:
        """Digests of all inputs, by name; equal for two runs that give the same artifact. Stored in the lineage."""
        return {
            "recipe": self.recipe.digest,
            "base": self.base.lineage.base.digest,
            "calibration": self.calibration[1].digest,
            "evaluation": self.evaluation[1].digest,
            **{f"text {source}": digest for source, digest in self.text_digests.items()},
        }


def prepare(recipe: Recipe, cache: Path) -> Inputs:
    """Import the base into `cache` and draw the token ids; raises RecipeError or DataError."""
    base = base_artifact(recipe.base, cache)
    encoder = Encoder(base)
    c, e = recipe.calibration, recipe.evaluation
    refuse_long(_lengths(recipe), base.config)
    if c.source == e.source and set(c.buckets) & set(e.buckets):
        logger.warning("calibration and evaluation share texts: the perplexity after pruning will flatter it")
    calibration = _calibration(c, base, encoder)
    evaluation = draw(Draw(e.source, e.buckets, max(e.tokens // e.window, 1), e.window, e.seed), encoder)
    readers = [stage for stage in recipe.stages if isinstance(stage, Training | Vocabulary)]
    texts = {source or c.source for stage in readers for source in stage.sources}
    return Inputs(
        recipe, base, calibration, evaluation, {source: digest_of_source(source) for source in sorted(texts - {SELF})}
    )


def refuse_long(lengths: Mapping[str, int], config: Mapping[str, Any]) -> None:
    """Raise RecipeError for sequences beyond the learned positions of a model; warn if its positions are rotary.

    `lengths` maps the name of each option to its tokens per sequence.
    """
    limit = positions(config)
    for name, length in lengths.items():
        if limit is None or length <= limit:
            continue
        sentence = f"{name} = {length} is beyond the {limit} positions of the model"
        if not any("rope" in key or key == "rotary_pct" for key in config):
            raise RecipeError(f"{sentence}: take {limit} or less")
        logger.warning("%s, which was never trained at that length", sentence)


def _lengths(recipe: Recipe) -> dict[str, int]:
    """Tokens per sequence of each option that sets them, by the option's name in the recipe."""
    lengths = {"calibration.tokens": recipe.calibration.tokens, "evaluation.window": recipe.evaluation.window}
    training = {n: stage for n, stage in enumerate(recipe.stages) if isinstance(stage, Training)}
    return lengths | {f"stages[{number}].length": stage.length for number, stage in training.items()}


def _calibration(wanted: Calibration, base: Artifact, encoder: Encoder) -> tuple[Tensor, lineage.Data]:
    """The calibration ids [sequences, tokens]: drawn from a text, or sampled from the base itself."""
    if wanted.source == SELF:
        ids = sample_base(base, wanted.sequences, wanted.tokens, wanted.seed)
        return ids, data_record(SELF, ids, wanted.seed)
    return draw(Draw(wanted.source, wanted.buckets, wanted.sequences, wanted.tokens, wanted.seed), encoder)


def reusable(output: Path, inputs: Inputs) -> Artifact | None:
    """The artifact at `output` if it is intact and was made from the same recipe, base and data; else None."""
    if not (output / lineage.FILE).exists():
        return None
    try:
        artifact = Artifact.open(output)
    except ArtifactError as error:
        logger.info("%s; starting over", error)
        return None
    same = artifact.lineage.inputs == inputs.identity and artifact.lineage.evaluation is not None
    if not same:
        logger.info("%s was made with another recipe or other data: starting over", output)
    return artifact if same else None


def base_artifact(reference: str, cache: Path) -> Artifact:
    """The base artifact of `reference`, imported into `cache` unless it is there already."""
    path = locate(reference)
    digest = digest_of(path)
    target = cache / f"{path.resolve().name.removesuffix('.gguf')}-{digest[:12]}"
    if found := _imported(target):
        return found
    from pruning.model.base import import_base  # imports transformers, which takes seconds

    with locked(cache / ".lock", f"importing a model into {cache}"):
        if found := _imported(target):  # another process imported it meanwhile, and may be reading it
            return found
        logger.info("importing %s", path)
        digests = FileDigests()
        import_base(path, digest, target, digests)
    return Artifact.open(target, digests=digests)


def _imported(target: Path) -> Artifact | None:
    """The base already imported at `target`, or None if it is missing or damaged."""
    try:
        return Artifact.open(target) if target.exists() else None
    except ArtifactError as error:
        logger.info("%s; importing it again", error)
        return None
