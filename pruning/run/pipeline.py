"""Carries a recipe out: base in, evaluated artifact out.

Each stage keeps its results in a work directory, so a rerun resumes there. The artifact is published atomically with
its lineage; the work directory is then removed.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch

from pruning.model import base as bases
from pruning.model.versions import versions
from pruning.model.weights import WeightSource
from pruning.recipe.options import AWQ, Depth, Layerwise, Round, Stage, Vocabulary, Width
from pruning.recipe.order import undone_quantisations
from pruning.recipe.training import Continue, Distill, Reconstruct, Shear, TextTraining, Training
from pruning.run.output import CANDIDATE, IDENTITY, LOCK, begun_threads, can_resume, clear, run_identity, work_directory
from pruning.run.record import evaluate
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs, own_grids
from pruning.stages.layerwise import awq, layerwise, round_to_nearest
from pruning.stages.structured import depth, width
from pruning.stages.team import ALONE, Team
from pruning.stages.training import continuation
from pruning.stages.training.data import write_own_samples
from pruning.stages.training.distil import distillation
from pruning.stages.training.distil.sharded import refuse_processes
from pruning.stages.training.reconstruct import reconstruction
from pruning.stages.training.shear import shearing
from pruning.stages.vocabulary import vocabulary
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.errors import ArtifactError
from server.storage.digests import FileDigests
from server.storage.files import publish, write_atomically
from server.storage.lock import locked

logger = logging.getLogger(__name__)

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
"""Carries out each kind of stage: (options, model, context) -> (model, lineage step)."""

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
"""Preflight of each kind of stage: (options, config, context) -> the config it will leave; raises if it cannot run."""


Shared = Training | Layerwise
"""Stages whose sequences the processes of a team share out."""


def run(inputs: Inputs, output: Path, cache: Path, *, keep: bool = False, team: Team = ALONE) -> Artifact:
    """Carry out the recipe, resuming an interrupted run, and publish the artifact at `output`.

    The stages' results are removed unless `keep`. This process leads `team`; the others must call `follow`.

    Raises Busy if another process makes the same output, RecipeError if the work directory holds foreign files.
    """
    work, digests = work_directory(output), FileDigests()
    with locked(work / LOCK, f"making {output}"):
        begin(work, inputs)
        candidate = _candidate(work, inputs, team, digests)
        publish(evaluate(candidate, inputs, cache, work).path, output)
        if not keep:
            clear(work)
            shutil.rmtree(work)
    return Artifact.open(output, digests=digests)


def follow(inputs: Inputs, output: Path, team: Team) -> None:
    """Take part in the shared stages of the run that the first process of `team` leads.

    All other stages are done by the leader; this process waits for them and reads their results.
    """
    work = work_directory(output)
    if _assembled(work, inputs, team, FileDigests()) is None:
        _run_stages(work, inputs, team)


def begin(work: Path, inputs: Inputs) -> None:
    """Prepare `work`: keep an interrupted run's results if its inputs and software were the same, else clear them.

    A resumed run computes with the number of threads that it was begun with, so that its figures are those of one run.
    """
    if can_resume(work, inputs.identity):
        threads = begun_threads(work)
        if threads != torch.get_num_threads():
            logger.info("resuming with %d threads, the number that the run was begun with", threads)
            torch.set_num_threads(threads)
        return
    if clear(work):
        logger.info("%s was begun with another recipe, other data or another version: starting anew", work)
    write_atomically(work / IDENTITY, json.dumps(run_identity(inputs.identity)).encode())


def _candidate(work: Path, inputs: Inputs, team: Team, digests: FileDigests) -> Artifact:
    """The pruned model as an artifact in the work directory, not yet evaluated."""
    if done := _assembled(work, inputs, team, digests):
        return done
    model, steps = _run_stages(work, inputs, team)
    path = work / CANDIDATE
    with CheckpointWriter(path, digests=digests) as writer:
        for name in model.source.names():
            writer.add(name, model.source.tensor(name), model.source.scales(name))
        writer.text("config.json", json.dumps(model.config, indent=2, sort_keys=True) + "\n")
        for file in sorted(inputs.base.path.iterdir()):
            if file.name not in ("config.json", "model.safetensors", record.FILE, *model.files):
                writer.copy(file)
        for name, text in model.files.items():
            writer.text(name, text)
        writer.finish(_lineage(inputs, steps))
    return Artifact.open(path, digests=digests)


def _assembled(work: Path, inputs: Inputs, team: Team, digests: FileDigests) -> Artifact | None:
    """The candidate that an interrupted run assembled; without an intact one, run the preflight and return None."""
    path = work / CANDIDATE
    with team.first():
        if path.exists():
            try:
                return Artifact.open(path, digests=digests)
            except ArtifactError as error:  # killed while its record was written
                logger.info("%s; assembling it again", error)
                shutil.rmtree(path)
        _preflight(work, inputs, team)
    return None


def _run_stages(work: Path, inputs: Inputs, team: Team) -> tuple[StageModel, tuple[record.Step, ...]]:
    """Run all stages in order; every process takes part in shared stages, the leader alone carries out the others."""
    own = own_grids(inputs)
    model = StageModel(inputs.base.config, own)
    steps: list[record.Step] = []
    digest = weights_digest(model.source) if team.leads else ""
    for number, stage in enumerate(inputs.recipe.stages):
        before, files, context = model.source, model.files, StageContext(inputs, work / f"stage-{number}", team)
        if isinstance(stage, TextTraining | Continue):
            with team.first():
                write_own_samples(stage, inputs)
        with nullcontext() if isinstance(stage, Shared) else team.first():
            model, step = APPLY[type(stage)](stage, model, context)
            model = model._replace(files={**files, **model.files})
            if isinstance(stage, Vocabulary) and number + 1 < len(inputs.recipe.stages):
                inputs = vocabulary.later_inputs(stage, None if number else model, context)
        if not team.leads:
            continue
        _warn_of_lost_scales(before, model.source, own)
        made = weights_digest(model.source)
        steps.append(msgspec.structs.replace(step, parent_digest=digest, digest=made))
        digest = made
    return model, tuple(steps)


def _preflight(work: Path, inputs: Inputs, team: Team) -> None:
    """Preflight: raise if a stage cannot run on the configuration that the stages before it will leave."""
    config = inputs.base.config
    for sentence in undone_quantisations(inputs.recipe.stages):
        logger.warning("%s", sentence)
    if team.size > 1 and not any(isinstance(stage, Shared) for stage in inputs.recipe.stages):
        logger.warning(
            "no stage prunes layer by layer or trains the whole model: of %d processes, one does all the work",
            team.size,
        )
    for number, stage in enumerate(inputs.recipe.stages):
        if isinstance(stage, Training):
            team.check(stage.batch, str(msgspec.to_builtins(stage)["kind"]))
        if isinstance(stage, Distill):
            refuse_processes(stage, team)
        context = StageContext(inputs, work / f"stage-{number}")
        if type(stage) in CHECK:
            config = CHECK[type(stage)](stage, config, context)
        if isinstance(stage, Vocabulary) and number + 1 < len(inputs.recipe.stages):
            inputs = vocabulary.later_inputs(stage, None, context)


def _warn_of_lost_scales(before: WeightSource, after: WeightSource, own: WeightSource) -> None:
    """Warn of weights that a stage left at 16 bits although an earlier stage had quantised them."""
    gone = [
        name
        for name in sorted(set(before.names()) & set(after.names()))
        if (scales := before.scales(name)) is not None
        and after.scales(name) is None
        and ((found := own.scales(name)) is None or not torch.equal(scales, found))
    ]
    if gone:
        logger.warning("%d quantised weights are at 16 bits again, %s for instance: quantise last", len(gone), gone[0])


def _lineage(inputs: Inputs, steps: tuple[record.Step, ...]) -> record.Lineage:
    """The lineage of the candidate, without an evaluation."""
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
