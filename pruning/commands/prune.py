"""`secateur prune RECIPE --output DIR`: makes the artifact of a recipe, or reuses it; interrupted, it resumes.

The recipe is read before torch is imported, so that a typo is reported at once.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.commands.failures import exit_code
from server.command_line import Parser
from server.commands.artifact.base_cache import add_base_cache
from server.commands.start.doctor.finding import printed

if TYPE_CHECKING:
    from pruning.recipe.recipe import Recipe
    from pruning.run.acceptance import AcceptanceTasks
    from pruning.stages.team import Team
    from server.artifact.checkpoint.reader import Artifact


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur prune",
        description="Carry out a recipe and print a table of before and after; an artifact of the same recipe is "
        "reused. The recipe's tasks judge the result: exit code 3 if a gate fails. With --processes, or started by "
        "torchrun or `accelerate launch`, processes share the sequences of layer-wise stages and of training.",
    )
    options.add_argument("recipe", type=Path, help="the recipe, a TOML file")
    options.add_argument("--output", type=Path, metavar="DIR", help="the artifact to make or reuse")
    options.add_argument(
        "--check",
        action="store_true",
        help="say in a second whether the recipe will run and its result will serve, and prune nothing",
    )
    options.add_argument("--json", action="store_true", help="print what --check finds as a JSON array")
    add_base_cache(options)
    options.add_argument(
        "--explain",
        type=_svg,
        nargs="?",
        const=Path(),
        metavar="SVG",
        help="also print what each layer lost and why, and draw it into SVG, or into DIR.explain.svg",
    )
    options.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="processes that share the sequences, one per GPU (default: 1)",
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0, 3 if a gate fails, or as `exit_code`."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.check:
        return exit_code(lambda: check(arguments))
    if arguments.output is None:
        options.error("the following arguments are required: --output")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: prune(arguments))


def check(arguments: argparse.Namespace) -> int:
    """Print what is known of the recipe without pruning; returns 2 if something failed."""
    from pruning.commands.check import examine, quiet

    quiet()
    found = printed(examine(arguments.recipe, arguments.output, arguments.base_cache), as_json=arguments.json)
    return 2 if any(finding.state == "failed" for finding in found) else 0


def prune(arguments: argparse.Namespace) -> int:
    """Make or reuse the artifact and print its table; returns 3 if a gate of the recipe's tasks fails."""
    from pruning.data.amounts import refuse_small
    from pruning.recipe.recipe import read

    recipe = read(arguments.recipe)
    refuse_small(recipe)  # before a base is imported, which may take minutes
    from pruning.run.launch import launched_team  # imports torch
    from pruning.run.output import refuse_output, restore_replaced

    output = _resolved(arguments.output)
    command = ["prune", str(arguments.recipe), "--output", str(output), "--base-cache", str(arguments.base_cache)]
    with launched_team(arguments.processes, command) as team:
        if team.leads:
            restore_replaced(output)
            refuse_output(output, recipe.base)
        # Made first, so that a bad task is refused before any work.
        acceptance = _acceptance(recipe, arguments.base_cache) if team.leads else None
        artifact = _carry_out(recipe, output, arguments.base_cache, team)
    if artifact is None:
        return 0
    from pruning.evaluation.report.before_after import table

    print(table(artifact, _served(artifact, recipe, arguments.base_cache)))
    if arguments.explain is not None:
        beside = output.with_name(f"{output.name}.explain.svg")
        _explain(artifact, arguments.explain if arguments.explain.name else beside)
    return acceptance.judge(artifact) if acceptance else 0


def _served(artifact: "Artifact", recipe: "Recipe", cache: Path) -> list[float]:
    """The artifact's perplexities by the runner that will serve it, if that is the native one."""
    from pruning.evaluation.comparison.served import served_perplexities
    from pruning.stages.inputs import base_of

    return served_perplexities(artifact, base_of(recipe, cache), recipe.evaluation, cache)


def _acceptance(recipe: "Recipe", cache: Path) -> "AcceptanceTasks | None":
    """The tasks that judge the recipe's result, if it names any."""
    if not recipe.tasks:
        return None
    from pruning.run.acceptance import AcceptanceTasks  # imports transformers
    from pruning.stages.inputs import base_of

    return AcceptanceTasks(recipe, base_of(recipe, cache), cache)


def _carry_out(recipe: "Recipe", output: Path, cache: Path, team: "Team") -> "Artifact | None":
    """Make or reuse the artifact at `output`; None in a process that only helps with the training."""
    from pruning.run.output import remove_leftovers
    from pruning.stages.inputs import prepare, reusable

    if not team.leads:
        logging.disable(logging.WARNING)  # the leading process logs it
    with team.first():
        inputs = prepare(recipe, cache)
        artifact = reusable(output, inputs)
    if artifact and team.leads:
        remove_leftovers(output, inputs.identity)
    team.wait()
    if artifact is None:
        from pruning.run.pipeline import follow, run  # imports transformers, which takes seconds

        if not team.leads:
            follow(inputs, output, team)
        else:
            artifact = run(inputs, output, cache, team=team)
    return artifact if team.leads else None


def _explain(artifact: "Artifact", drawing: Path) -> None:
    """Print what each layer of `artifact` lost and why, and draw it as an SVG."""
    from pruning.evaluation.report.layer_chart import svg
    from pruning.evaluation.report.layer_losses import explanation, grids
    from server.storage.files import write_atomically

    print(f"\n{explanation(artifact.lineage)}")
    if layers := grids(artifact.lineage):
        drawing.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(drawing, svg(artifact.path.name, layers).encode())
        print(f"drawn in {drawing}")


def _resolved(output: Path) -> Path:
    """`output` with its links followed; raises OSError if they form a loop."""
    try:
        return output.resolve()
    except RuntimeError:  # Python 3.11 and 3.12 raise this for a loop
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(output)) from None


def _count(text: str) -> int:
    """A number of processes, at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: write a whole number from 1 up")
    return int(text)


def _svg(text: str) -> Path:
    """A path that ends in .svg."""
    if not text.endswith(".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} is no .svg file; to draw beside DIR, put --explain last")
    return Path(text)
