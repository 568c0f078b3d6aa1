"""`secateur evaluate`: measures an artifact on a task or a text, or a revision of a skill on a task."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pruning.commands.failures import exit_code
from pruning.errors import GATE_FAILED
from server.command_line import Parser
from server.commands.artifact.base_cache import add_base_cache

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur evaluate",
        description="Measure an artifact on a task, beside its base and the quantised base of equal bytes, or on a "
        "text. A task gives a table and a report; exit code 3 if one of its gates fails.",
    )
    options.add_argument("artifact", type=Path, nargs="?", help="an artifact's directory")
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=Path, metavar="FILE.toml", help="the task to score")
    what.add_argument("--source", help="the text to score, JSON lines or JSON; may be package:module/file")
    options.add_argument(
        "--report", type=Path, metavar="DIR", help="where the report of a task goes (default: ARTIFACT.evaluation)"
    )
    options.add_argument(
        "--key",
        type=Path,
        metavar="PEM",
        help="sign the results of a task with this private key, beside them in TASK.json.sig",
    )
    options.add_argument(
        "--runner",
        choices=("auto", "native", "transformers"),
        default="auto",
        help="what computes a task, as `runner` in a server's file (default: auto, the runner that would serve it)",
    )
    _add_skill_options(options)
    add_base_cache(options)
    _add_text_options(options)
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0, 3 if a gate of the task fails, or as `exit_code`."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: score(arguments))


def score(arguments: argparse.Namespace) -> int:
    """Score what the options name; raises ConfigError for options that do not go together."""
    from server.errors import ConfigError

    if (arguments.artifact is None) == (not arguments.skill):
        raise ConfigError("name either an artifact's directory or --skill NAME@REVISION")
    if arguments.json and arguments.task is not None:
        raise ConfigError("--json is for --source: the results of a task are JSON in its report already")
    if not arguments.skill:
        return score_task(arguments) if arguments.task else score_text(arguments)
    if arguments.task is None:
        raise ConfigError("a skill is scored on a task: --task FILE.toml")
    from pruning.commands.evaluate_skill import score_skill

    return score_skill(arguments)


def score_task(arguments: argparse.Namespace) -> int:
    """Print the table of a task, write its report, and sign it with --key; returns 3 if a gate fails."""
    from pruning.evaluation.comparison.compare import compare
    from pruning.evaluation.report.report import report_folder, write_report
    from pruning.evaluation.tasks.reading import read_task
    from server.artifact.checkpoint.reader import Artifact, find_base
    from server.artifact.registry import results
    from server.artifact.signing.keys import read_private

    key = read_private(arguments.key) if arguments.key else None
    task = read_task(arguments.task)
    artifact = Artifact.open(arguments.artifact)
    base = find_base(arguments.base_cache, artifact.lineage.base.digest)
    comparison = compare(artifact, base, task, arguments.base_cache, arguments.runner)
    folder = arguments.report or report_folder(artifact)
    passed = write_report(comparison, folder).passed
    file = folder / f"{task.name}.json"
    results.signature_of(file).unlink(missing_ok=True)  # of earlier results
    if key is not None:
        results.sign(file, key)
    return 0 if passed else GATE_FAILED


def score_text(arguments: argparse.Namespace) -> int:
    """Print the perplexity on windows of a text, beside the base's; returns 0."""
    from pruning.data.draw import Draw
    from pruning.evaluation.comparison.perplexities import perplexities, table
    from pruning.stages.preflight import refuse_long
    from server.artifact.checkpoint.reader import Artifact, find_base
    from server.errors import ArtifactError

    artifact = Artifact.open(arguments.artifact)
    refuse_long({"--window": arguments.window}, artifact.config)
    try:
        base = find_base(arguments.base_cache, artifact.lineage.base.digest)
    except ArtifactError as error:
        logger.warning("%s; without it only %s is measured", error.message, arguments.artifact)
        base = None
        if any(step.technique == "vocabulary" for step in artifact.lineage.steps):
            logger.warning(
                "its vocabulary was reduced: a perplexity per token of its own compares with no other model's"
            )
    count = max(arguments.tokens // arguments.window, 1)
    wanted = Draw(arguments.source, arguments.buckets, count, arguments.window, contiguous=arguments.contiguous)
    found = perplexities(artifact, base, wanted)
    print(json.dumps([one._asdict() for one in found], indent=2) if arguments.json else table(wanted, found))
    return 0


def _add_skill_options(options: argparse.ArgumentParser) -> None:
    """The options of --skill."""
    options.add_argument(
        "--skill",
        default="",
        metavar="NAME@REVISION",
        help="score this revision of a skill (NAME@3, NAME@draft, NAME@published) on --task instead, through its "
        "running server: with its prompt, knowledge and filters, metered as `draft`",
    )
    options.add_argument("--server", type=Path, metavar="SERVER.toml", help="the settings of the server of --skill")
    options.add_argument(
        "--url", default="", help="its admin listener (default: as the settings say); key in SECATEUR_ADMIN_KEY"
    )


def _add_text_options(options: argparse.ArgumentParser) -> None:
    """The options of --source."""
    options.add_argument(
        "--buckets",
        type=int,
        nargs="+",
        default=list(range(10)),
        metavar="N",
        help="which tenths of --source to score, 0 to 9 (default: all)",
    )
    options.add_argument(
        "--contiguous",
        action="store_true",
        help="keep --source as one text in its order; by default its paragraphs or records are shuffled, which raises "
        "the perplexity of a long text",
    )
    options.add_argument(
        "--tokens", type=_tokens, default=8192, metavar="N", help="tokens of --source in all (default: 8192)"
    )
    options.add_argument(
        "--window", type=_tokens, default=512, metavar="N", help="tokens in each window of --source (default: 512)"
    )
    options.add_argument("--json", action="store_true", help="print the perplexities on --source as a JSON array")


def _tokens(text: str) -> int:
    """A number of tokens, at least 2: the first of a window is not predicted."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: write a whole number from 2 up")
    return int(text)
