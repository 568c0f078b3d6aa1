"""`secateur prune` and `secateur evaluate`: a mistake is answered with one sentence and exit code 2, never a traceback.

Interrupted, it says that the same command goes on where it was, and exits with 130.
"""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import SecateurError

if TYPE_CHECKING:
    from pruning.recipe.recipe import Recipe
    from pruning.run.proof import Proof
    from pruning.stages.team import Team
    from server.artifact.checkpoint.reader import Artifact

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code: int = arguments.run(arguments) or 0
    except SecateurError as error:
        return _fail(error.message)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        return _fail("the disk is full: free some space and run the same command again, and it goes on where it was")
    except (MemoryError, RuntimeError) as error:  # torch says it by a RuntimeError
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        return _fail("the memory does not suffice: choose a smaller batch, length or rank, or a machine with more")
    except KeyboardInterrupt:
        print("\nInterrupted: run the same command again and it goes on where it was.", file=sys.stderr)
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="secateur", description="Prune a language model and measure the result.")
    commands = top.add_subparsers(required=True, metavar="prune | evaluate")
    prune = commands.add_parser("prune", help="carry out a recipe", description=_prune.__doc__)
    prune.add_argument("recipe", type=Path, help="a TOML file")
    prune.add_argument("--output", type=Path, required=True, metavar="DIR", help="the artifact to make or reuse")
    prune.add_argument("--base-cache", type=Path, default=Path("build/base"), metavar="DIR", help="imported models")
    prune.add_argument(
        "--explain",
        type=_svg,
        nargs="?",
        const=Path(),
        metavar="SVG",
        help="also print what each layer lost and why, and draw it: into SVG, or DIR.explain.svg",
    )
    prune.add_argument("--processes", type=_count, default=1, metavar="N", help="that train together, one on each GPU")
    prune.set_defaults(run=_prune)
    evaluate = commands.add_parser("evaluate", help="measure an artifact", description=_evaluate.__doc__)
    evaluate.add_argument("artifact", type=Path, help="an artifact's directory")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=Path, metavar="FILE.toml", help="a task, beside the base and the quantised base")
    what.add_argument("--source", help="perplexity of a text, JSON lines or JSON; may be package:module/file")
    evaluate.add_argument("--report", type=Path, metavar="DIR", help="where a task's report goes; ARTIFACT.evaluation")
    evaluate.add_argument(
        "--runner",
        choices=("auto", "native", "transformers"),
        default="auto",
        help="what computes a task, as `runner` in a server's file has it; auto: what would serve the artifact",
    )
    evaluate.add_argument("--base-cache", type=Path, default=Path("build/base"), metavar="DIR", help="imported models")
    evaluate.add_argument("--buckets", type=int, nargs="+", default=list(range(10)), metavar="N", help="0 to 9")
    evaluate.add_argument("--tokens", type=_window, default=8192, metavar="N", help="tokens in all")
    evaluate.add_argument("--window", type=_window, default=512, metavar="N", help="tokens in each window")
    evaluate.set_defaults(run=_evaluate)
    return top


def _prune(arguments: argparse.Namespace) -> int:
    """Carry out a recipe and print a table of before and after; an artifact that fits the recipe is reused.

    The tasks of the recipe judge it at the end; the exit code is 3 where a gate fails, and the artifact says so.
    With --processes, or started by torchrun or `accelerate launch`, several processes share out the batches of the
    stages that train the whole model.
    """
    from pruning.recipe.recipe import read
    from pruning.run.output import refuse, restore
    from pruning.run.processes import team_of

    recipe = read(arguments.recipe)
    output = _resolved(arguments.output)
    same = ["prune", str(arguments.recipe), "--output", str(output), "--base-cache", str(arguments.base_cache)]
    with team_of(arguments.processes, same) as team:
        if team.leads:
            restore(output)
            refuse(output, recipe.base)
        proof = _proof(recipe, arguments.base_cache) if team.leads else None  # refused before any work
        artifact = _carry_out(recipe, output, arguments.base_cache, team)
    if artifact is None:
        return 0
    from pruning.evaluation.report.table import table
    from pruning.recipe.sources import locate

    print(table(artifact, locate(recipe.base)))
    if arguments.explain is not None:
        beside = output.with_name(f"{output.name}.explain.svg")
        _explain(artifact, arguments.explain if arguments.explain.name else beside)
    return proof.judge(artifact) if proof else 0


def _proof(recipe: "Recipe", cache: Path) -> "Proof | None":
    """The tasks that judge what the recipe makes, if it names any."""
    if not recipe.tasks:
        return None
    from pruning.run.proof import Proof  # brings transformers
    from pruning.stages.inputs import base_artifact

    return Proof(recipe, base_artifact(recipe.base, cache), cache)


def _carry_out(recipe: "Recipe", output: Path, cache: Path, team: "Team") -> "Artifact | None":
    """Make or reuse the artifact at `output`; None in a process that only takes part in the training."""
    from pruning.run.output import tidy
    from pruning.stages.inputs import prepare, reusable

    if not team.leads:
        logging.disable(logging.WARNING)  # the first process says it
    with team.first():
        inputs = prepare(recipe, cache)
        artifact = reusable(output, inputs)
    if artifact and team.leads:
        tidy(output, inputs.identity)
    team.wait()
    if artifact is None:
        from pruning.run.pipeline import follow, run  # brings transformers, which takes seconds

        if not team.leads:
            follow(inputs, output, team)
        else:
            artifact = run(inputs, output, cache, team=team)
    return artifact if team.leads else None


def _explain(artifact: "Artifact", drawing: Path) -> None:
    """Print what each layer of `artifact` lost and why, and draw it."""
    from pruning.evaluation.report.chart import svg
    from pruning.evaluation.report.explain import explanation, grids
    from pruning.model.weights import write_bytes

    print(f"\n{explanation(artifact.lineage)}")
    if layers := grids(artifact.lineage):
        drawing.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(drawing, svg(artifact.path.name, layers).encode())
        print(f"drawn in {drawing}")


def _evaluate(arguments: argparse.Namespace) -> int:
    """Measure an artifact on a task, beside its base and the quantised base of equal bytes, or on a text.

    A task gives a table and a report; the exit code is 3 where a gate of the task fails.
    """
    if arguments.task:
        from pruning.evaluation.report.report import evaluate

        return evaluate(arguments.artifact, arguments.task, arguments.base_cache, arguments.report, arguments.runner)
    from tempfile import TemporaryDirectory

    from pruning.data.draw import Draw, Encoder, draw
    from pruning.evaluation.scoring.perplexity import perplexity
    from pruning.stages.context import Model
    from pruning.stages.inputs import refuse_long
    from server.artifact.checkpoint.reader import Artifact

    artifact = Artifact.open(arguments.artifact)
    refuse_long({"--window": arguments.window}, artifact.config)
    if any(step.technique == "vocabulary" for step in artifact.lineage.steps):
        logger.warning("%s has a smaller vocabulary: what follows is for each of its own tokens", arguments.artifact)
    count = max(arguments.tokens // arguments.window, 1)
    windows, _ = draw(Draw(arguments.source, arguments.buckets, count, arguments.window), Encoder(artifact))
    with TemporaryDirectory() as folder:
        print(f"{perplexity(Model(artifact.config, artifact), windows, Path(folder), 'evaluating'):.4f}")
    return 0


def _resolved(output: Path) -> Path:
    """The directory that `output` stands for; raises OSError where its links run in a circle."""
    try:
        return output.resolve()
    except RuntimeError:  # Python 3.11 and 3.12 say it so
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(output)) from None


def _window(text: str) -> int:
    """A number of tokens in which at least one is predicted."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens from 2 up")
    return int(text)


def _count(text: str) -> int:
    """A number of processes."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes from 1 up")
    return int(text)


def _svg(text: str) -> Path:
    """A file to draw into."""
    if not text.endswith(".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} is no .svg file; without one, put --explain last")
    return Path(text)


def _fail(sentence: str) -> int:
    """Say what went wrong and return the exit code for it."""
    print(f"secateur: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
