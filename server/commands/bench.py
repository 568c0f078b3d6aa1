"""Measures an artifact beside its dense base and that base in 8 bits, behind the real server: bytes, memory, tokens/s.

The servers are up one at a time and take turns, so that a busy moment of the machine hits all.
"""

import argparse
import hashlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from server.artifact.checkpoint.reader import Artifact, find_base
from server.commands.bench_client import Measurement, Server, measure
from server.errors import ArtifactError, SecateurError

ROUNDS = 3
KEY = "sk-bench"
SKILL = f"""
name = "bench"
system = "You are a helpful assistant."
keys = ["{hashlib.sha256(KEY.encode()).hexdigest()}"]
max_tokens = 256
"""


class Row(msgspec.Struct, frozen=True):
    """One line of the table, without runs where it was not measured."""

    name: str
    weight_bytes: int
    perplexity: float
    runs: tuple[Measurement, ...] = ()


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="secateur bench", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--quantised", type=Path, help="the base in 8 bits; without it, only its record is shown")
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"), help="where the dense base lies")
    arguments = parser.parse_args(argv)
    try:
        pruned = Artifact.open(arguments.artifact)
        base = find_base(arguments.base_cache, pruned.lineage.base.digest)
        quantised = Artifact.open(arguments.quantised) if arguments.quantised else None
        print(table(rows(base, pruned, quantised)))
    except SecateurError as error:
        print(f"secateur bench: {error}", file=sys.stderr)
        return 2
    return 0


def rows(base: Artifact, pruned: Artifact, quantised: Artifact | None = None) -> list[Row]:
    """Measure all artifacts in turns; without `quantised`, the base in 8 bits is shown by its record."""
    recorded = pruned.lineage.evaluation
    if recorded is None:
        raise ArtifactError(f"{pruned.path} has no evaluation in its lineage: add [evaluation] to the recipe")
    artifacts = {"dense": base, "pruned": pruned} | ({"quantised": quantised} if quantised else {})
    runs: dict[str, list[Measurement]] = {name: [] for name in artifacts}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "skill.toml").write_text(SKILL)
        for round_ in range(ROUNDS):
            for name, artifact in artifacts.items():
                print(f"round {round_ + 1} of {ROUNDS}: {name}", file=sys.stderr)
                with Server(artifact.path, Path(directory)) as server:
                    runs[name].append(measure(server, KEY))
    perplexity = recorded.perplexity
    return [
        Row("dense, 16 bits", base.size, perplexity["dense"], tuple(runs["dense"])),
        Row("pruned", pruned.size, perplexity["pruned"], tuple(runs["pruned"])),
        Row("dense, 8 bits", recorded.bytes["int8"], perplexity["int8"], tuple(runs.get("quantised", ()))),
    ]


def table(measured: Sequence[Row]) -> str:
    """The table as Markdown, each figure the median of its rounds, with its ratio to the first row."""
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
    """The median of one field over the rounds."""
    return statistics.median(float(getattr(run, field)) for run in row.runs)


def compared(value: float, reference: float, form: str) -> str:
    """A figure, and how many times the reference it is."""
    return format(value, form) if value == reference else f"{value:{form}} ({value / reference:.2f} x)"
