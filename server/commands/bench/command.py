"""`secateur bench ARTIFACT`: measures an artifact beside its dense base and a rival, in the real server.

`secateur bench FIRST SECOND` compares two servers instead. Servers take turns, so that noise on the machine hits all of
them.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from server.artifact.checkpoint.lineage import Evaluation
from server.artifact.checkpoint.reader import Artifact, find_base
from server.command_line import Parser, print_json
from server.commands.artifact.base_cache import add_base_cache
from server.commands.bench.client import Measurement, Server, measure
from server.commands.bench.compare import Load, compare
from server.commands.bench.compare import table as comparison_table
from server.commands.bench.targets import KEY, SKILL, opened
from server.errors import ArtifactError, ConfigError

ROUNDS = 3


class Row(msgspec.Struct, frozen=True):
    """One model's figures; `runs` is empty if only its recorded figures are known."""

    name: str
    weight_bytes: int
    perplexity: float
    runs: tuple[Measurement, ...] = ()


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur bench",
        description="Measure an artifact beside its dense base and a rival behind the real server: "
        "bytes of weights, resident memory, time to first token, tokens a second, perplexity. With two servers, "
        "compare them on the same prompts in turns: each an address of any server with OpenAI's chat completions, or "
        "an artifact to serve.",
    )
    options.add_argument(
        "servers", nargs="+", metavar="ARTIFACT|URL", help="one artifact, with an evaluation; or two servers to compare"
    )
    options.add_argument(
        "--quantised",
        type=Path,
        metavar="DIR",
        help="a rival to measure as well: an artifact of the same base, quantised alone, with the same [evaluation]",
    )
    add_base_cache(options)
    pair = options.add_argument_group("two servers")
    pair.add_argument("--key-file", action="append", metavar="FILE", help="a file with the API key; twice for two keys")
    pair.add_argument("--model", action="append", metavar="NAME", help="the model or skill to ask; twice for two")
    pair.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one prompt a line")
    pair.add_argument("--rounds", type=_count, default=5, metavar="N", help="turns of each server (default: 5)")
    pair.add_argument("--streams", type=_count, default=8, metavar="N", help="replies at once (default: 8)")
    pair.add_argument("--tokens", type=_count, default=128, metavar="N", help="most tokens of a reply (default: 128)")
    pair.add_argument("--json", action="store_true", help="print every turn and the ratios as JSON")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the table; returns 0. Raises ArtifactError, or SecateurError if a server does not answer."""
    options = parser()
    arguments = options.parse_args(argv)
    if len(arguments.servers) == 2:
        return compared_servers(arguments)
    if len(arguments.servers) > 2 or "://" in arguments.servers[0]:
        options.error("give one artifact, or two servers to compare")
    pruned = Artifact.open(Path(arguments.servers[0]))
    base = find_base(arguments.base_cache, pruned.lineage.base.digest)
    quantised = Artifact.open(arguments.quantised) if arguments.quantised else None
    print(table(rows(base, pruned, quantised)))
    return 0


def compared_servers(arguments: argparse.Namespace) -> int:
    """Print the comparison of two servers; returns 0."""
    load = Load(arguments.rounds, arguments.streams, arguments.tokens, _prompts(arguments.prompts))
    with opened(arguments) as targets:
        found = compare(targets, load)
    if arguments.json:
        print_json(found)
    else:
        print(comparison_table(found))
    return 0


def _prompts(path: Path | None) -> tuple[str, ...]:
    """The lines of a file of prompts; raises ConfigError if it cannot be read or has none."""
    if path is None:
        return ()
    try:
        lines = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise ConfigError(f"{path} has no line: write one prompt a line")
    return lines


def _count(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def rows(base: Artifact, pruned: Artifact, quantised: Artifact | None = None) -> list[Row]:
    """Measure the artifacts in ROUNDS turns; of the base in 8 bits and as found, the recorded figures only.

    Raises ArtifactError if an artifact has no evaluation, or `quantised` one on other text.
    """
    recorded, perplexity = _evaluation(pruned), _evaluation(pruned).perplexity
    artifacts = {"dense": base, "pruned": pruned} | ({"quantised": quantised} if quantised else {})
    runs: dict[str, list[Measurement]] = {name: [] for name in artifacts}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "skill.toml").write_text(SKILL)
        for round_ in range(ROUNDS):
            for name, artifact in artifacts.items():
                print(f"round {round_ + 1} of {ROUNDS}: {name}", file=sys.stderr)
                with Server(artifact.path, Path(directory)) as server:
                    runs[name].append(measure(server, KEY))
    found = [
        Row("dense, 16 bits", base.size, perplexity["dense"], tuple(runs["dense"])),
        Row("pruned", pruned.size, perplexity["pruned"], tuple(runs["pruned"])),
    ]
    if quantised:
        own = _evaluation(quantised)
        if own.data != recorded.data:
            raise ArtifactError(
                f"{quantised.path} was evaluated on other text than {pruned.path}: give both the same [evaluation]"
            )
        found.append(Row("quantised alone", quantised.size, own.perplexity["pruned"], tuple(runs["quantised"])))
    found.append(Row("dense, 8 bits", recorded.bytes["int8"], perplexity["int8"]))
    if "found" in recorded.bytes:
        found.append(Row("base as found", recorded.bytes["found"], perplexity["found"]))
    return found


def _evaluation(artifact: Artifact) -> Evaluation:
    """What was evaluated when `artifact` was made; raises ArtifactError if nothing was."""
    if artifact.lineage.evaluation is None:
        raise ArtifactError(f"{artifact.path} has no evaluation in its lineage: add [evaluation] to the recipe")
    return artifact.lineage.evaluation


def table(measured: Sequence[Row]) -> str:
    """A Markdown table: each figure is the median of the rounds, with its ratio to the first row."""
    columns = ["", "weights, MB", "resident, MB", "first token, ms", "tokens/s, 1 stream", "tokens/s, 8", "perplexity"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    dense = measured[0]
    for row in measured:
        cells = [row.name, compared(row.weight_bytes / 1e6, dense.weight_bytes / 1e6, ".1f")]
        for field in ("resident_mb", "first_token_ms", "single", "batched"):
            cells.append(compared(median(row, field), median(dense, field), ".0f") if row.runs else "-")
        cells.append(compared(row.perplexity, dense.perplexity, ".2f"))
        lines.append(f"| {' | '.join(cells)} |")
    threads = f"{platform.machine()}, Python {platform.python_version()}, {ROUNDS} rounds, medians"
    return "\n".join([*lines, "", f"Measured on {threads}; ratios to the first row in brackets."])


def median(row: Row, field: str) -> float:
    """The median of a Measurement's field over the rounds."""
    return statistics.median(float(getattr(run, field)) for run in row.runs)


def compared(value: float, reference: float, form: str) -> str:
    """`value` and its ratio to `reference`, unless they are equal."""
    return format(value, form) if value == reference else f"{value:{form}} ({value / reference:.2f} x)"
