"""The table that `secateur prune` prints: bytes, parameters, zeros and perplexity before and after.

Every figure comes from the lineage or the artifact itself.
"""

from collections.abc import Sequence

from pruning.evaluation.scoring.measures import few_tokens
from pruning.model.weights import parameters
from server.artifact.checkpoint.lineage import Evaluation
from server.artifact.checkpoint.reader import Artifact

LABELS = {
    "found": "base as found",
    "dense": "base, 16 bits",
    "int8": "base, int8 in groups of 32",
    "pruned": "pruned",
}
SERVED = "as served: by the native runner, which rounds the inputs of integer weights to 8 bits unless input_bits = 16"


def table(artifact: Artifact, served: Sequence[float] = ()) -> str:
    """The table of `artifact` and its base, as found, at 16 bits and at int8.

    `served` are the artifact's perplexities by the native runner, if that serves it.
    """
    evaluation = artifact.lineage.evaluation
    assert evaluation is not None, "the pipeline evaluates what it publishes"
    total, zeros = parameters(artifact)
    texts = evaluation.texts
    heads = "".join(f"{text.name or 'perplexity':>12}" for text in texts)
    base = artifact.lineage.base
    lines = [f"base: {base.name}{f' ({base.note})' if base.note else ''}", f"{'':34}{'bytes':>15}{heads}"]
    note = base.note.removesuffix(", dequantised")
    for key, label in LABELS.items():
        if key in evaluation.bytes:
            name = f"{label} ({note})" if key == "found" and note else label
            lines.append(_line(name, evaluation.bytes[key], [text.perplexity[key] for text in texts]))
    if served:
        lines.append(_line("pruned, as served", evaluation.bytes["pruned"], served))
    removed = sum(len(step.removed_blocks) for step in artifact.lineage.steps)
    lines.append(f"{total:,} parameters, {zeros / total:.1%} of them zero; {removed} blocks removed")
    lines.append(_basis(evaluation))
    if served:
        lines.append(SERVED)
    if evaluation.note:
        lines.append(f"pruned: {evaluation.note}")
    return "\n".join(lines)


def _basis(evaluation: Evaluation) -> str:
    """The sentence that says what the perplexities were measured on, and that it was little if it was."""
    windows = f"perplexity on {evaluation.data.sequences} windows of {evaluation.window} tokens"
    named = [f"{text.name} ({text.data.source})" for text in evaluation.texts if text.name]
    basis = f"{windows} of each text: {', '.join(named)}" if named else windows
    return basis + few_tokens(evaluation.data.sequences * evaluation.window)


def _line(label: str, size: int, perplexities: Sequence[float]) -> str:
    """One line of the table."""
    return f"{label:34}{size:>15,}{''.join(f'{value:>12.2f}' for value in perplexities)}"
