"""A recipe in, an evaluated artifact out: each stage leaves its results in a work directory, so a rerun goes on there.

The artifact appears under its name whole, with its lineage, or not at all; the work directory goes once it has.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from pruning.data.retokenise import retokenise
from pruning.evaluation.scoring.perplexity import Int8, perplexity
from pruning.model import base as bases
from pruning.model.versions import versions
from pruning.model.weights import WeightSource
from pruning.recipe.options import AWQ, Depth, Layerwise, Round, Stage, Vocabulary, Width
from pruning.recipe.order import undone_quantisations
from pruning.recipe.training import Continue, Distill, Reconstruct, Shear, TextTraining, Training
from pruning.run.output import CANDIDATE, IDENTITY, LOCK, begun, clear, mark, work_directory
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.layerwise import awq, layerwise, round_to_nearest
from pruning.stages.structured import depth, vocabulary, width
from pruning.stages.team import ALONE, Team
from pruning.stages.training import continuation
from pruning.stages.training.data import write_own_samples
from pruning.stages.training.distil import distillation
from pruning.stages.training.reconstruct import reconstruction
from pruning.stages.training.shear import shearing
from server.artifact.checkpoint import bom, card
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter, publish
from server.errors import ArtifactError
from server.storage.files import write_atomically
from server.storage.lock import locked
from server.text import tokenizer_files

logger = logging.getLogger(__name__)

SPELT = "the text in the tokens that stay, its loss for each token of the base's vocabulary"

APPLY: dict[type[Stage], Callable[[Any, StageModel, StageContext], tuple[StageModel, record.Step]]] = {
    Layerwise: layerwise.apply,
    Depth: depth.apply,
    Width: width.apply,
    Vocabulary: vocabulary.apply,
    AWQ: awq.apply,
    Round: round_to_nearest.apply,
    Distill: distillation.apply,
    Reconstruct: reconstruction.apply,
    Shear: shearing.apply,
    Continue: continuation.apply,
}
"""What carries out each kind of stage."""

CHECK: dict[type[Stage], Callable[[Any, dict[str, Any], StageContext], dict[str, Any]]] = {
    Layerwise: layerwise.check,
    Depth: depth.check,
    Width: width.check,
    Vocabulary: vocabulary.check,
    Distill: distillation.check,
    Reconstruct: reconstruction.check,
    Shear: shearing.check,
    Continue: continuation.check,
}
"""What says before any work that a stage cannot be done to a configuration, or what that becomes."""


def run(inputs: Inputs, output: Path, cache: Path, *, keep: bool = False, team: Team = ALONE) -> Artifact:
    """Carry out the recipe, going on where an earlier run was stopped; returns the artifact at `output`.

    What the stages left is removed, unless it is to be kept for another run. The other processes of `team`, which this
    one leads, must `follow`.

    Raises Busy where another process does so, RecipeError where the work directory holds what no run left there.
    """
    work = work_directory(output)
    with locked(work / LOCK, f"making {output}"):
        begin(work, inputs)
        candidate = _candidate(work, inputs, team)
        publish(evaluate(candidate, inputs, cache, work).path, output)
        if not keep:
            clear(work)
            shutil.rmtree(work)
    return Artifact.open(output)


def follow(inputs: Inputs, output: Path, team: Team) -> None:
    """Take part in the training of a run that the first process of `team` makes; ends when there is no more of it.

    All other stages are found finished in their folders, once the first process has done them.
    """
    work = work_directory(output)
    if _begun(work, inputs, team) is None:
        _stages(work, inputs, team)


def begin(work: Path, inputs: Inputs) -> None:
    """Keep what an interrupted run left in `work` for the same inputs, and clear what one left for others."""
    if not begun(work, inputs.identity):
        if clear(work):
            logger.info("%s was begun with another recipe, other data or another version: starting anew", work)
        write_atomically(work / IDENTITY, json.dumps(mark(inputs.identity)).encode())


def evaluate(candidate: Artifact, inputs: Inputs, cache: Path, work: Path) -> Artifact:
    """Measure the saved candidate and its base, and write the figures into the candidate's lineage."""
    ids, data = inputs.evaluation
    figures = _base_figures(inputs, cache, work)
    model = StageModel(candidate.config, candidate)
    before, after = (tokenizer_files.read(artifact.path).library for artifact in (inputs.base, candidate))
    same = before.to_str() == after.to_str()
    windows = ids if same else retokenise(ids, before, after)
    pruned = perplexity(model, windows, work / "evaluation-pruned", "evaluating the pruned model")
    evaluation = record.Evaluation(
        data=data,
        window=data.tokens,
        perplexity=figures["perplexity"] | {"pruned": pruned},
        bytes=figures["bytes"] | {"pruned": candidate.size},
        note="" if same else SPELT,
    )
    return documented(candidate, msgspec.structs.replace(candidate.lineage, evaluation=evaluation))


def documented(candidate: Artifact, lineage: record.Lineage) -> Artifact:
    """Write the documents, then the record that covers them: after a kill in between the candidate is refused."""
    documents = {card.FILE: card.render, bom.FILE: bom.render}  # the second lists the digest of the first
    files = {name: digest for name, digest in lineage.files.items() if name not in documents}
    for name, render in documents.items():
        write_atomically(candidate.path / name, render(msgspec.structs.replace(lineage, files=files), candidate.config))
        files = files | {name: record.digest_of(candidate.path / name)}
    complete = msgspec.structs.replace(lineage, files=files)
    write_atomically(candidate.path / record.FILE, record.encoded(complete))
    return Artifact(candidate.path, complete, candidate.config)


def _base_figures(inputs: Inputs, cache: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Perplexity and bytes of the base at 16 bits and at int8, measured once for each text and kept in `cache`."""
    windows, data = inputs.evaluation
    made = hashlib.sha256(json.dumps(versions()).encode()).hexdigest()[:8]  # others may compute other figures
    path = cache / "evaluations" / f"{inputs.base.path.name}-{data.digest[:12]}-{data.tokens}-{made}.json"
    if path.exists():
        figures: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        return figures
    model = StageModel(inputs.base.config, inputs.base)
    rounded = Int8(model)
    before = perplexity(model, windows, work / "evaluation-base", "evaluating the base")
    int8 = perplexity(model._replace(source=rounded), windows, work / "evaluation-int8", "evaluating the base at int8")
    size = inputs.base.size
    figures = {"perplexity": {"dense": before, "int8": int8}, "bytes": {"dense": size, "int8": size - rounded.saved}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(figures).encode())
    return figures


def _candidate(work: Path, inputs: Inputs, team: Team) -> Artifact:
    """The pruned model as an artifact in the work directory, without its evaluation."""
    if done := _begun(work, inputs, team):
        return done
    model, steps = _stages(work, inputs, team)
    path = work / CANDIDATE
    with CheckpointWriter(path) as writer:
        for name in model.source.names():
            writer.add(name, model.source.tensor(name), model.source.scales(name))
        writer.text("config.json", json.dumps(model.config, indent=2, sort_keys=True) + "\n")
        for file in sorted(inputs.base.path.iterdir()):
            if file.name not in ("config.json", "model.safetensors", record.FILE, *model.files):
                writer.copy(file)
        for name, text in model.files.items():
            writer.text(name, text)
        writer.finish(_lineage(inputs, steps))
    return Artifact.open(path)


def _begun(work: Path, inputs: Inputs, team: Team) -> Artifact | None:
    """What an earlier run has put together, if it came so far; raises before any work where a stage cannot be done."""
    path = work / CANDIDATE
    with team.first():
        if path.exists():
            try:
                return Artifact.open(path)
            except ArtifactError as error:  # killed while its evaluation was written
                logger.info("%s; putting it together again", error)
                shutil.rmtree(path)
        _check(work, inputs, team)
    return None


def _stages(work: Path, inputs: Inputs, team: Team) -> tuple[StageModel, tuple[record.Step, ...]]:
    """What the stages make of the base, one after another; all processes train, and the first one does all else."""
    model = StageModel(inputs.base.config, inputs.base)
    steps: list[record.Step] = []
    digest = weights_digest(model.source) if team.leads else ""
    for number, stage in enumerate(inputs.recipe.stages):
        before, context = model.source, StageContext(inputs, work / f"stage-{number}", team)
        if isinstance(stage, TextTraining | Continue):
            with team.first():
                write_own_samples(stage, inputs)
        with nullcontext() if isinstance(stage, Training) else team.first():
            model, step = APPLY[type(stage)](stage, model, context)
        if not team.leads:
            continue
        _warn_of_lost_scales(before, model.source)
        made = weights_digest(model.source)
        steps.append(msgspec.structs.replace(step, parent_digest=digest, digest=made))
        digest = made
    return model, tuple(steps)


def _check(work: Path, inputs: Inputs, team: Team) -> None:
    """Raise before any work where a stage could not be done to what those before it will leave."""
    config = inputs.base.config
    for sentence in undone_quantisations(inputs.recipe.stages):
        logger.warning("%s", sentence)
    if team.size > 1 and not any(isinstance(stage, Training) for stage in inputs.recipe.stages):
        logger.warning("no stage trains the whole model, so one of the %d processes does all the work", team.size)
    for number, stage in enumerate(inputs.recipe.stages):
        if isinstance(stage, Training):
            team.check(stage.batch, str(msgspec.to_builtins(stage)["kind"]))
        if type(stage) in CHECK:
            config = CHECK[type(stage)](stage, config, StageContext(inputs, work / f"stage-{number}"))


def _warn_of_lost_scales(before: WeightSource, after: WeightSource) -> None:
    """Say that weights which were quantised no longer are."""
    kept = set(before.names()) & set(after.names())
    gone = sorted(name for name in kept if before.scales(name) is not None and after.scales(name) is None)
    if gone:
        logger.warning("%d quantised weights are at 16 bits again, %s for instance: quantise last", len(gone), gone[0])


def _lineage(inputs: Inputs, steps: tuple[record.Step, ...]) -> record.Lineage:
    """The record of what was done, before any evaluation."""
    return record.Lineage(
        created=bases.now(),
        base=inputs.base.lineage.base,
        recipe=inputs.recipe.values(),
        steps=steps,
        versions=versions() | {"python": sys.version.split()[0]},
        inputs=inputs.identity,
        calibration=inputs.calibration[1],
        parent=inputs.base.lineage.parent,
        parent_digest=inputs.base.lineage.parent_digest,
    )
