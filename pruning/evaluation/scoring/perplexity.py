"""Perplexity of a model, streamed block by block: memory holds one block and a few windows, whatever the model's size.

exp of the mean over non-overlapping windows of the mean negative log-likelihood of all tokens but the first.
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
from pruning.stages.context import CHECKED_TOKENS, StageModel
from server.progress import Progress

GROUP = 32
"""Columns per 16-bit scale of the int8 base."""
BATCH = 4
"""Windows in memory at once."""


@torch.no_grad()
def perplexity(model: StageModel, windows: Tensor | RetokenisedWindows, folder: Path, what: str) -> float:
    """The perplexity of `model` in float32 on `windows` of ids [n, tokens]; resumes from `folder` after a kill.

    For retokenised windows it is per token of the original tokenizer, and so compares with the original model's.
    Raises ModelRefused if the result is not finite.
    """
    every = windows.ids if isinstance(windows, RetokenisedWindows) else windows
    blocks = Blocks(base.skeleton(model.config), model.source)
    blocks.learn_extras(every[:1, :CHECKED_TOKENS])
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
            f"{what} gives a perplexity that is not finite: the final norm or the head computes NaN or infinity"
        )
    return result


class Int8Weights:
    """The weights of `model` with all linear layers of the blocks rounded to int8 in groups of `GROUP` columns."""

    def __init__(self, model: StageModel) -> None:
        blocks = Blocks(base.skeleton(model.config), model.source)
        self._source: WeightSource = model.source
        self._linears = {name: linear for index in range(len(blocks)) for name, linear in blocks.linears(index).items()}

    def names(self) -> list[str]:
        """The names of all weights."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, rounded and dequantised if it is a linear layer's."""
        weight = self._source.tensor(name)
        if name not in self._linears:
            return weight
        weight = weight.float()
        return rounded(weight) if isinstance(self._linears[name], nn.Linear) else rounded(weight.T).T

    def scales(self, name: str) -> None:
        """None: weights are returned dequantised."""

    @property
    def saved(self) -> int:
        """Bytes saved relative to 16 bits."""
        shapes = [weight_of(linear).shape for linear in self._linears.values()]
        return sum(rows * columns - 2 * rows * -(-columns // GROUP) for rows, columns in shapes)


def rounded(weight: Tensor) -> Tensor:
    """`weight` [rows, columns] rounded to symmetric int8 with a float16 scale per `GROUP` columns, and dequantised."""
    rows, columns = weight.shape
    grouped = nn.functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / 127).half().float()
    steps = (grouped / scale.where(scale > 0, 1)).round().clamp(-127, 127)
    return (steps * scale).view(rows, -1)[:, :columns]
