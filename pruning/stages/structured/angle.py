"""Angular distance of depth pruning: the run of blocks whose input and output states differ least, at the last token.

Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, https://arxiv.org/abs/2403.17887, equations 6, 7.
"""

from collections.abc import Sequence
from math import pi
from pathlib import Path
from time import monotonic

import torch
from safetensors.torch import load_file
from torch import Tensor

from pruning.model.weights import write_file
from pruning.passes.sweep import BlockView, Note


class LastTokens:
    """A visit that saves each sequence's last-token state before and after a block, in one file per block."""

    runs = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, view: BlockView) -> Note:
        """Run the block; notes the seconds."""
        start = monotonic()
        before: list[Tensor] = []
        after: list[Tensor] = []

        def see(states: Tensor, output: Tensor) -> None:
            before.append(states[:, -1].clone())  # a view would hold the states of all tokens
            after.append(output[:, -1].clone())

        view.advance(see)
        write_file(self._file(view.index), {"before": torch.cat(before), "after": torch.cat(after)})
        return {"seconds": monotonic() - start}

    def states(self, blocks: int) -> list[Tensor]:
        """The states [sequences, hidden] before each of the `blocks`, and after the last."""
        files = [load_file(self._file(index)) for index in range(blocks)]
        return [file["before"] for file in files] + [files[-1]["after"]]

    def _file(self, index: int) -> Path:
        return self._folder / f"last-{index:04}.safetensors"


def straightest(states: Sequence[Tensor], count: int) -> tuple[int, ...]:
    """The `count` consecutive blocks with the least angular distance from first input to last output; ties: the first.

    `states` [sequences, hidden] are those before each block and after the last.
    """
    angles = [angle(before, after) for before, after in zip(states, states[count:], strict=False)]
    start = angles.index(min(angles))
    return tuple(range(start, start + count))


def angle(before: Tensor, after: Tensor) -> float:
    """The mean over sequences of arccos(cos(before, after)) / pi: 0 for equal directions, 1 for opposite ones."""
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosine.clamp(-1, 1).arccos().mean().item() / pi
