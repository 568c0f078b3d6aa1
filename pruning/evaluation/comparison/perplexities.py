"""Perplexity of an artifact on a text beside its base's, per token of the base's vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pruning.data.draw import Draw, draw
from pruning.data.encoder import Encoder
from pruning.data.retokenise import retokenise
from pruning.evaluation.scoring.measures import few_tokens
from pruning.evaluation.scoring.perplexity import perplexity
from pruning.stages.context import StageModel
from server.artifact.checkpoint.reader import Artifact
from server.text import tokenizer_files


class Measured(NamedTuple):
    """The perplexity of one model."""

    name: str
    bytes: int
    perplexity: float


def perplexities(artifact: Artifact, base: Artifact | None, wanted: Draw) -> list[Measured]:
    """The perplexities of `base`, if there is one, and of `artifact`, on the same windows, in torch and float32."""
    reference = base or artifact
    windows, _ = draw(wanted, Encoder(reference))
    before, after = (tokenizer_files.read(one.path).library for one in (reference, artifact))
    own = windows if before.to_str() == after.to_str() else retokenise(windows, before, after)
    found = []
    with TemporaryDirectory() as folder:
        if base is not None and base.path != artifact.path:
            value = perplexity(StageModel(base.config, base), windows, Path(folder) / "base", "evaluating the base")
            found.append(Measured("base, 16 bits", base.size, value))
        value = perplexity(StageModel(artifact.config, artifact), own, Path(folder) / "own", "evaluating")
        found.append(Measured(str(artifact.path), artifact.size, value))
    return found


def table(wanted: Draw, found: Sequence[Measured]) -> str:
    """One line a model, with its ratio to the base, under a sentence that says what was measured."""
    buckets = ", ".join(map(str, sorted(wanted.buckets)))
    order = (
        "in order, as one text"
        if wanted.contiguous
        else "its texts shuffled, each with an end (--contiguous keeps them)"
    )
    width = max(len(model.name) for model in found)
    lines = [
        f"perplexity per token on {wanted.sequences} windows of {wanted.tokens} tokens of {wanted.source}, "
        f"buckets {buckets}, {order}{few_tokens(wanted.sequences * wanted.tokens)}"
    ]
    for model in found:
        ratio = f"  {model.perplexity / found[0].perplexity:.3f} x" if model is not found[0] else ""
        lines.append(f"{model.name:{width}}  {model.bytes:>14,} bytes  {model.perplexity:.4f}{ratio}")
    return "\n".join(lines)
