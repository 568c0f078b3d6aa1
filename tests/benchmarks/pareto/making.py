"""Makes what a plan asks for and is not there yet: artifacts of recipes, and files of llama.cpp's own quantiser.

Candidates that begin with the same stages share them. An artifact is named by its recipe: a changed one is made anew,
changed texts or code are not noticed: remove the work folder after them.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree, rmtree

import msgspec

from pruning.benchmark.plan import without_defaults
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import Recipe, read
from pruning.recipe.training import Training
from pruning.run.output import work_directory
from pruning.run.pipeline import begin, run
from pruning.stages.inputs import Inputs, base_artifact, prepare
from server.artifact.checkpoint.lineage import FILE
from server.artifact.checkpoint.reader import Artifact
from tests.benchmarks.pareto.bases import source_of
from tests.benchmarks.pareto.plan import Candidate, ParetoPlan


class Workplace(msgspec.Struct, frozen=True):
    """Where artifacts, bases and stages are kept."""

    work: Path
    cache: Path

    def base(self, plan: ParetoPlan, candidate: Candidate) -> Artifact:
        """The dense base of `candidate`, imported."""
        return base_artifact(source_of(plan.base(candidate), self.work, self.cache), self.cache)

    def recipe(self, plan: ParetoPlan, candidate: Candidate) -> Recipe:
        """The recipe of `candidate`, whose base is made first."""
        return plan.recipe(candidate, source_of(plan.base(candidate), self.work, self.cache))

    def path(self, recipe: Recipe) -> Path:
        """Where the artifact of `recipe` is, or will be."""
        return self.work / "artifacts" / digest(recipe)[:16]

    def artifact(self, plan: ParetoPlan, candidate: Candidate) -> Artifact:
        """The artifact of `candidate`, made now unless it is there; resumes an interrupted run."""
        if candidate.recipe:
            return _of_file(Path(candidate.recipe), self.cache)
        if not candidate.stages:
            return self.base(plan, candidate)
        recipe = self.recipe(plan, candidate)
        output = self.path(recipe).resolve()
        if (output / FILE).exists():  # by its name it is of this recipe, whatever defaults options got since
            return Artifact.open(output)
        inputs = prepare(recipe, self.cache)
        own = work_directory(output)
        own.mkdir(parents=True, exist_ok=True)
        begin(own, inputs)
        shared = [self.work / "stages" / name for name in _stage_names(inputs)]
        _link(shared, own)
        artifact = run(inputs, output, self.cache, keep=True)
        for number, folder in enumerate(shared):
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                (own / f"stage-{number}").replace(folder)
        rmtree(own)
        return artifact


def _of_file(recipe: Path, cache: Path) -> Artifact:
    """The artifact of a recipe's file in `build/`, made now unless it is there."""
    output = Path("build") / recipe.stem
    if (output / FILE).exists():
        return Artifact.open(output)
    return run(prepare(read(recipe), cache), output.resolve(), cache)


def digest(recipe: Recipe) -> str:
    """SHA-256 of a recipe without defaults."""
    return hashlib.sha256(msgspec.json.encode(without_defaults(recipe), order="deterministic")).hexdigest()


def _link(shared: Sequence[Path], own: Path) -> None:
    """Link the finished leading stages into a run's own folder; a stage after a missing one is of another model."""
    for number, folder in enumerate(shared):
        mine = own / f"stage-{number}"
        if not folder.exists():
            return
        if not mine.exists():
            copytree(folder, mine, copy_function=os.link)


def _stage_names(inputs: Inputs) -> list[str]:
    """For each stage, a digest of what decides its result: base, calibration, the stages up to it and their texts."""
    base = {name: inputs.identity[name] for name in ("base", "calibration")}
    common = without_defaults(inputs.recipe.calibration)
    texts: set[str] = set()
    names = []
    for count, stage in enumerate(inputs.recipe.stages, 1):
        if isinstance(stage, Training | Vocabulary):
            texts.update(stage.named_sources or [text.source for text in inputs.recipe.calibration.texts])
        read = {source: inputs.text_digests[source] for source in sorted(texts & inputs.text_digests.keys())}
        part = (base, read, common, [without_defaults(one) for one in inputs.recipe.stages[:count]])
        names.append(hashlib.sha256(msgspec.json.encode(part, order="deterministic")).hexdigest()[:16])
    return names
