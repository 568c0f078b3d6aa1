"""`make bench-pruning`: carries out rows of recipes that differ in their stages alone, and keeps what each came to.

A row that is in the file of results already is not carried out again, so a run that was stopped goes on where it was.
"""

import argparse
import hashlib
import logging
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from shutil import copytree, rmtree
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pruning.benchmark.measured import Result, read, write
from pruning.benchmark.which import page
from pruning.errors import RecipeError
from pruning.recipe.options import Stage
from pruning.recipe.recipe import Calibration, Evaluation, Recipe, read_as
from pruning.run.output import work_directory
from pruning.stages.inputs import Inputs, base_artifact, prepare
from server.errors import SecateurError, reason

logger = logging.getLogger(__name__)


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the table: the stages, and with which seeds of the calibration they are measured."""

    group: str
    name: str
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...] = (0,)
    alone: bool = False
    """Whether it is given all processors, because its time is part of the claim."""
    calibration: dict[str, Any] = {}
    """What differs from the calibration of all."""

    def __post_init__(self) -> None:
        if "seed" in self.calibration:
            raise ValueError("the seeds of a row's calibration are its `seeds`")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows, and what they have in common."""

    base: str
    calibration: Calibration
    evaluation: Evaluation
    rows: Annotated[tuple[Row, ...], Meta(min_length=1)]


class Job(NamedTuple):
    """One row with one seed."""

    row: Row
    seed: int
    recipe: Recipe
    threads: int

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe without what it leaves at the defaults, so that a field which stages gain changes none.

        Whoever changes a default, or what a stage does, takes its rows out of the file of results.
        """
        return hashlib.sha256(msgspec.json.encode(apart_from_defaults(self.recipe), order="deterministic")).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out what is missing and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pruning.benchmark.bench", description=__doc__)
    parser.add_argument("plan", type=Path, help="a TOML file with the rows")
    parser.add_argument("--results", type=Path, required=True, help="a JSON file, which is added to")
    parser.add_argument("--work", type=Path, default=Path("build/bench-pruning"))
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows carried out side by side")
    parser.add_argument("--keep", action="store_true", help="leave the artifacts in the work directory")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        measure_all(arguments)
    except SecateurError as error:
        print(f"secateur: {error.message}", file=sys.stderr)
        return 2
    return 0


def measure_all(arguments: argparse.Namespace) -> None:
    """Carry out the rows that are missing and print the page."""
    plan: Plan = read_as(Plan, arguments.plan, RecipeError)
    done = read(arguments.results)
    waiting = [job for job in jobs(plan) if job.digest not in done]
    logger.info("%d rows are measured, %d are to do", len(done), len(waiting))
    base_artifact(plan.base, arguments.base_cache)  # once, as processes that import the same base refuse each other
    failed = 0
    for job, future in carry_out(waiting, arguments):
        row = f"{job.row.group}, {job.row.name}, seed {job.seed}"
        try:
            result = future.result()
        except Exception as error:  # whatever it was, the results of other rows are kept
            logger.error("%s: %s", row, reason(error))
            failed += 1
            continue
        done = read(arguments.results) | {job.digest: result}
        write(arguments.results, done)
        logger.info("%s: perplexity %.2f", row, result.perplexity["pruned"])
    print(page(list(done.values())))
    if failed:
        raise RecipeError(f"{failed} rows failed, each of which is named above; a rerun goes on with them")


def jobs(plan: Plan) -> Iterator[Job]:
    """Every row with every seed: in the order of the plan, the first seed of all before the second of any."""
    for number in range(max(len(row.seeds) for row in plan.rows)):
        for row in (row for row in plan.rows if number < len(row.seeds)):
            seed = row.seeds[number]
            yield Job(row, seed, _recipe(plan, row, seed), (os.cpu_count() or 1) if row.alone else 1)


def _recipe(plan: Plan, row: Row, seed: int) -> Recipe:
    """The recipe of one job; raises RecipeError where what the row says makes none."""
    common: dict[str, Any] = msgspec.to_builtins(plan)
    calibration = common["calibration"] | row.calibration | {"seed": seed}
    values = {"base": plan.base, "calibration": calibration, "evaluation": common["evaluation"]}
    try:
        return msgspec.convert(values | {"stages": msgspec.to_builtins(row.stages)}, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"the row {row.name} of {row.group}: {error}") from None


def carry_out(waiting: Sequence[Job], arguments: argparse.Namespace) -> Iterator[tuple[Job, Future[Result]]]:
    """Each job once it has ended, each in a process of its own; those that want to be alone come last."""
    together = [job for job in waiting if not job.row.alone]
    for part, workers in ((together, arguments.jobs), ([job for job in waiting if job.row.alone], 1)):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            futures = {
                pool.submit(measure, job, arguments.work, arguments.base_cache, arguments.keep): job for job in part
            }
            for future in as_completed(futures):
                yield futures[future], future


def measure(job: Job, work: Path, cache: Path, keep: bool) -> Result:
    """Carry out one job in this process; stages that an earlier one began with too are taken from there."""
    import torch

    from pruning.run.pipeline import begin, run

    torch.set_num_threads(job.threads)
    output = work.resolve() / job.recipe.digest[:16]
    own = work_directory(output)
    own.mkdir(parents=True, exist_ok=True)
    inputs = prepare(job.recipe, cache)
    begin(own, inputs)
    kept = [work / "stages" / digest for digest in beginnings(inputs, job.threads)]
    for number, folder in enumerate(kept):
        if folder.exists() and not (own / f"stage-{number}").exists():
            copytree(folder, own / f"stage-{number}", copy_function=os.link)
    artifact = run(inputs, output, cache, keep=True)
    for number, folder in enumerate(kept):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            (own / f"stage-{number}").replace(folder)
    rmtree(own)
    evaluation, steps = artifact.lineage.evaluation, artifact.lineage.steps
    assert evaluation is not None, "the pipeline evaluates what it publishes"
    if not keep:
        rmtree(output)
    return Result(
        group=job.row.group,
        name=job.row.name,
        seed=job.seed,
        recipe=job.digest,
        perplexity=evaluation.perplexity,
        bytes=evaluation.bytes,
        parameters=steps[-1].parameters,
        seconds=round(sum(step.seconds for step in steps), 1),
        threads=job.threads,
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        recoveries=tuple(step.recovery for step in steps if step.recovery),
    )


def beginnings(inputs: Inputs, threads: int) -> list[str]:
    """A digest of the first stage with all that decides it, this package's code too, of the first two, and so on."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    texts = {name: digest for name, digest in inputs.identity.items() if name not in ("recipe", "evaluation")}
    common = (texts, code.hexdigest(), inputs.recipe.calibration, threads)  # which decide the seconds that are noted
    parts = [(common, inputs.recipe.stages[: count + 1]) for count in range(len(inputs.recipe.stages))]
    return [hashlib.sha256(msgspec.json.encode(part, order="deterministic")).hexdigest()[:16] for part in parts]


def apart_from_defaults(value: Any) -> Any:
    """A recipe, or a part of one, in plain values without the fields that are at their defaults."""
    if isinstance(value, tuple):
        return [apart_from_defaults(item) for item in value]
    if not isinstance(value, msgspec.Struct):
        return value
    config = value.__struct_config__
    kind = {} if config.tag_field is None else {config.tag_field: config.tag}
    said = [field.name for field in msgspec.structs.fields(value) if differs(value, field)]
    return kind | {name: apart_from_defaults(getattr(value, name)) for name in said}


def differs(value: msgspec.Struct, field: msgspec.structs.FieldInfo) -> bool:
    """Whether `field` of `value` has no default or is not at it."""
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(getattr(value, field.name) != field.default_factory())
    return field.default is msgspec.NODEFAULT or bool(getattr(value, field.name) != field.default)


if __name__ == "__main__":
    sys.exit(main())
