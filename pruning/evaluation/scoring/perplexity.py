"""Perplexity of a model, block by block: one block and a few windows in memory, whatever the model's size.

Non-overlapping windows; exp of the mean over windows of the mean negative log-likelihood of all tokens but the first.
"""

from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data.retokenise import RetokenisedWindows
from pruning.errors import ModelRefused
from pruning.model import base
from pruning.model.blocks import Blocks, weight_of
from pruning.model.weights import WeightSource
from pruning.passes.gradients import next_token_loss
from pruning.passes.sweep import Sweep, pass_on
from pruning.progress import Progress
from pruning.stages.context import CHECKED_TOKENS, StageModel
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import load

GROUP = 32
"""Columns that share one 16-bit scale in the int8 comparison."""
BATCH = 4
"""Windows that are in memory at once."""


def dense(artifact: Artifact) -> nn.Module:
    """The artifact's model on the CPU in float32, whole in memory, as the loader that will serve it builds it."""
    return load(artifact, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def perplexity(model: StageModel, windows: Tensor | RetokenisedWindows, folder: Path, what: str) -> float:
    """The perplexity of `model` in float32 on `windows` [n, tokens] of ids; killed and run again, it goes on.

    Of windows that are spelt in other tokens it is that of each token before, so it can be compared.
    """
    every = windows.ids if isinstance(windows, RetokenisedWindows) else windows
    blocks = Blocks(base.skeleton(model.config), model.source)
    blocks.learn(every[:1, :CHECKED_TOKENS])
    sweep = Sweep(blocks, every, BATCH, folder, last=True)
    sweep.visit(pass_on, what, 1)
    states = sweep.states(len(blocks))
    losses = []
    with blocks.ending() as logits, Progress(f"{what}, its end", len(every)) as progress:
        for number, ids in enumerate(every):
            given = logits(states[number : number + 1].clone(), ids[None])[0]
            loss = (
                windows.loss(number, given) if isinstance(windows, RetokenisedWindows) else next_token_loss(given, ids)
            )
            losses.append(loss.double())
            progress.step()
    result: float = torch.stack(losses).mean().exp().item()
    if not isfinite(result):
        raise ModelRefused(
            f"{what} gives a perplexity that is not finite: its last norm or its head computes no numbers"
        )
    return result


class Int8:
    """`model`'s weights with the linears of all blocks rounded to int8 in groups of 32 columns."""

    def __init__(self, model: StageModel) -> None:
        blocks = Blocks(base.skeleton(model.config), model.source)
        self._source: WeightSource = model.source
        self._linears = {name: linear for index in range(len(blocks)) for name, linear in blocks.linears(index).items()}

    def names(self) -> list[str]:
        """All names."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, rounded if it is a linear layer's."""
        weight = self._source.tensor(name)
        if name not in self._linears:
            return weight
        weight = weight.float()
        return rounded(weight) if isinstance(self._linears[name], nn.Linear) else rounded(weight.T).T

    def scales(self, name: str) -> None:
        """None: the values are given as they are."""

    @property
    def saved(self) -> int:
        """How many bytes fewer it has than at 16 bits."""
        shapes = [weight_of(linear).shape for linear in self._linears.values()]
        return sum(rows * columns - 2 * rows * -(-columns // GROUP) for rows, columns in shapes)


def rounded(weight: Tensor) -> Tensor:
    """`weight` [rows, columns] as symmetric int8 with a float16 scale for each 32 columns would give it back."""
    rows, columns = weight.shape
    grouped = nn.functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / 127).half().float()
    steps = (grouped / scale.where(scale > 0, 1)).round().clamp(-127, 127)
    return (steps * scale).view(rows, -1)[:, :columns]
