"""`make bench-pruning`: carries out the rows of a benchmark plan and adds their figures to a results file.

Rows that are in the results file are skipped, so an interrupted benchmark resumes.
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

import msgspec

from pruning.benchmark.plan import BenchmarkJob, BenchmarkPlan, jobs
from pruning.benchmark.results import RowResult, read, write
from pruning.benchmark.which_method import page
from pruning.errors import RecipeError
from pruning.recipe.recipe import read_as
from pruning.run.output import work_directory
from pruning.stages.inputs import Inputs, base_artifact, prepare
from server.artifact.checkpoint.lineage import Lineage
from server.errors import SecateurError, reason

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
"""The code of `pruning`, any part of which may decide a stage's result."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the missing rows and print the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pruning.benchmark.measure", description=__doc__)
    parser.add_argument("plan", type=Path, help="the rows, a TOML file")
    parser.add_argument("--results", type=Path, required=True, help="the JSON file to add results to")
    parser.add_argument("--work", type=Path, default=Path("build/bench-pruning"))
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows measured in parallel")
    parser.add_argument("--keep", action="store_true", help="leave the artifacts in the work directory")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        measure_missing(arguments)
    except SecateurError as error:
        print(f"secateur: {error.message}", file=sys.stderr)
        return 2
    return 0


def measure_missing(arguments: argparse.Namespace) -> None:
    """Measure the rows that the results file lacks, and print the page of all; raises RecipeError if any failed."""
    plan: BenchmarkPlan = read_as(BenchmarkPlan, arguments.plan, RecipeError)
    done = read(arguments.results)
    waiting = [job for job in jobs(plan) if job.digest not in done]
    logger.info("%d rows are measured, %d are left", len(done), len(waiting))
    base_artifact(plan.base, arguments.base_cache)  # import it before the processes start, which would collide
    failed = 0
    for job, future in run_jobs(waiting, arguments):
        row = f"{job.row.group}, {job.row.name}, seed {job.seed}"
        try:
            result = future.result()
        except Exception as error:  # any failure leaves the other rows to be measured
            logger.error("%s: %s", row, reason(error))
            failed += 1
            continue
        done = read(arguments.results) | {job.digest: result}
        write(arguments.results, done)
        logger.info("%s: perplexity %.2f", row, result.perplexity["pruned"])
    print(page(list(done.values())))
    if failed:
        raise RecipeError(f"{failed} rows failed, each named above: run the same command to try them again")


def run_jobs(
    waiting: Sequence[BenchmarkJob], arguments: argparse.Namespace
) -> Iterator[tuple[BenchmarkJob, Future[RowResult]]]:
    """Yield each job with its finished future; each runs in its own process, the rows marked `alone` at the end."""
    together = [job for job in waiting if not job.row.alone]
    for part, workers in ((together, arguments.jobs), ([job for job in waiting if job.row.alone], 1)):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            futures = {
                pool.submit(measure, job, arguments.work, arguments.base_cache, arguments.keep): job for job in part
            }
            for future in as_completed(futures):
                yield futures[future], future


def measure(job: BenchmarkJob, work: Path, cache: Path, keep: bool) -> RowResult:
    """Carry out one job in this process, reusing the leading stages that another row has already carried out."""
    import torch

    from pruning.run.pipeline import begin, run

    torch.set_num_threads(job.threads)
    output = work.resolve() / job.recipe.digest[:16]
    own = work_directory(output)
    own.mkdir(parents=True, exist_ok=True)
    inputs = prepare(job.recipe, cache)
    begin(own, inputs)
    shared = [work / "stages" / digest for digest in stage_digests(inputs, job.threads)]
    for number, folder in enumerate(shared):
        if folder.exists() and not (own / f"stage-{number}").exists():
            copytree(folder, own / f"stage-{number}", copy_function=os.link)
    artifact = run(inputs, output, cache, keep=True)
    for number, folder in enumerate(shared):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            (own / f"stage-{number}").replace(folder)
    rmtree(own)
    if not keep:
        rmtree(output)
    return _result(job, artifact.lineage)


def _result(job: BenchmarkJob, lineage: Lineage) -> RowResult:
    """The figures of the job whose artifact has this record."""
    evaluation, steps = lineage.evaluation, lineage.steps
    assert evaluation is not None, "the pipeline evaluates what it publishes"
    return RowResult(
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
        base=f"{lineage.base.name} ({lineage.base.note})".removesuffix(" ()"),
        texts={text.name: text.perplexity for text in evaluation.others},
    )


def stage_digests(inputs: Inputs, threads: int) -> list[str]:
    """For each stage, a digest of all that decides its result: the stages up to it, the inputs, and our own code."""
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    texts = {
        name: digest for name, digest in inputs.identity.items() if name.split()[0] not in ("recipe", "evaluation")
    }
    common = (texts, code.hexdigest(), inputs.recipe.calibration, threads)  # threads decide the recorded seconds
    parts = [(common, inputs.recipe.stages[: count + 1]) for count in range(len(inputs.recipe.stages))]
    return [hashlib.sha256(msgspec.json.encode(part, order="deterministic")).hexdigest()[:16] for part in parts]


if __name__ == "__main__":
    sys.exit(main())
