"""`secateur lineage ARTIFACT`: draws the chain from the first base model to the artifact, and verifies it."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.card import describe, printable
from server.artifact.checkpoint.chain import check as verify_chain
from server.artifact.checkpoint.chain import exported, generations
from server.artifact.checkpoint.lineage import Lineage
from server.command_line import Parser
from server.errors import ArtifactError

SHORT = 16
"""Digits of a digest to print."""
BROKEN = 1
"""The exit code of a chain that does not verify."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur lineage",
        description="Draw what an artifact was made from, and verify it; exit code 1 if it does not verify.",
    )
    options.add_argument("artifact", type=Path, help="an artifact's directory")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the chain and whether it verifies; returns 0, or BROKEN. Raises ArtifactError without a lineage."""
    path: Path = parser().parse_args(argv).artifact
    lineage = record.read(path)
    print("\n".join(draw(lineage, path.resolve().name)))
    try:
        print(f"\nverified: {check(path)}")
    except ArtifactError as error:
        print(f"\nNOT VERIFIED: {error}")
        return BROKEN
    return 0


def draw(lineage: Lineage, name: str) -> Iterator[str]:
    """The lines of the drawing, oldest model first."""
    records = list(reversed(list(generations(lineage))))
    base = records[0].base
    note = f", {printable(base.note)}" if base.note else ""
    licence = "" if lineage.is_knowledge else f", licence {printable(base.license) or 'unknown'}"
    yield f"{printable(base.name)}{note}{licence}"
    yield f"│   source {base.digest[:SHORT]}"
    names = [*(child.base.name for child in records[1:]), name]
    for made, title in zip(records, names, strict=True):
        for step in made.steps:
            yield f"├─ {printable(describe(step))}"
            yield f"│   weights {step.parent_digest[:SHORT] or '?'} -> {step.digest[:SHORT] or '?'}"
        yield f"▼   {printable(title)}, made {made.created}, record {record.address(made)[:SHORT]}"
        for line in _measured(made):
            yield f"{'│' if made is not lineage else ' '}   {line}"


def check(path: Path) -> str:
    """A sentence that says what was verified; raises ArtifactError naming the file that failed."""
    lineage = record.read(path)
    signed = "not signed: the record itself is unproven"
    if (path / record.SIGNATURE).exists():
        signed = "there is a signature: `secateur verify` checks it"
    held = f"{len(lineage.files)} files have their digests, the chain is whole"
    if lineage.is_knowledge:
        record.verify(path, lineage)
        return f"{len(lineage.files)} files have their digests; {signed}"
    if form := exported(lineage):
        record.verify(path, lineage)
        verify_chain(path, lineage)
        return f"{held}; its weights are in a form for other software ({form}) and were not compared; {signed}"
    from server.artifact.checkpoint.reader import verified_record  # late: imports torch, and the chain is printed first

    verified_record(path)
    return f"{held}, the weights are those of its last step; {signed}"


def _measured(made: Lineage) -> Iterator[str]:
    """The lines with a record's evaluation, if it has one."""
    evaluation = made.evaluation
    if evaluation is None:
        return
    for key in evaluation.perplexity:
        size = evaluation.bytes.get(key)
        found = [f"{printable(text.name)} {text.perplexity[key]:.2f}".strip() for text in evaluation.texts]
        yield f"{printable(key):<8}{f'{size:>15,} bytes' if size else ''}  perplexity {', '.join(found)}"
    for text in evaluation.texts:
        data, name = text.data, text.name
        of = f"{printable(data.source)}{f' ({printable(name)})' if name else ''}"
        yield f"perplexity on {data.sequences} windows of {evaluation.window} tokens of {of}"
    for gate in evaluation.gates:
        yield f"gate {printable(gate.task)}: {'passed' if gate.passed else 'failed'}"
