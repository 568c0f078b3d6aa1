"""The table that `secateur prune` prints: bytes, parameters, zeros and perplexity before and after.

Every figure comes from the lineage or the artifact itself.
"""

from pathlib import Path

from pruning.model.weights import parameters
from server.artifact.checkpoint.reader import Artifact

LABELS = {"dense": "base, 16 bits", "int8": "base, int8 in groups of 32", "pruned": "pruned"}


def table(artifact: Artifact, source: Path) -> str:
    """The table of `artifact`, with a line for the size of the original base `source` if that is a single file."""
    evaluation = artifact.lineage.evaluation
    assert evaluation is not None, "the pipeline evaluates what it publishes"
    total, zeros = parameters(artifact)
    lines = [f"{'':34}{'bytes':>15}{'perplexity':>12}"]
    if source.is_file():
        lines.append(_line(f"base as found ({artifact.lineage.base.note})", source.stat().st_size, None))
    for key, label in LABELS.items():
        lines.append(_line(label, evaluation.bytes[key], evaluation.perplexity[key]))
    removed = sum(len(step.removed_blocks) for step in artifact.lineage.steps)
    lines.append(f"{total:,} parameters, {zeros / total:.1%} of them zero; {removed} blocks removed")
    lines.append(f"perplexity on {evaluation.data.sequences} windows of {evaluation.window} tokens")
    if evaluation.note:
        lines.append(f"pruned: {evaluation.note}")
    return "\n".join(lines)


def _line(label: str, size: int, perplexity: float | None) -> str:
    """One line of the table."""
    return f"{label:34}{size:>15,}{'' if perplexity is None else f'{perplexity:.2f}':>12}"
