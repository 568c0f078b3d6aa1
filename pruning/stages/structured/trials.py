"""Which block's removal raises the perplexity of the calibration text least, one after another.

Song et al., SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks,
https://arxiv.org/abs/2402.09025, algorithm 1. All trials of one removal share one pass over the blocks, so that each
block is loaded once for it; a killed run repeats at most one removal.
"""

import json
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, Call
from pruning.passes.gradients import next_token_loss
from pruning.passes.sweep import Note, mapped
from pruning.progress import Progress
from server.storage.files import write_atomically


class Trials:
    """Tries the removal of blocks on `ids` [sequences, tokens], which are few; keeps its files in `folder`."""

    def __init__(self, blocks: Blocks, ids: Tensor, folder: Path) -> None:
        self._blocks = blocks
        self._ids = ids
        self._journal = folder / "removed.json"
        self._states_file = folder / "trials"
        self._step: Callable[[], None] = lambda: None

    def remove(self, count: int) -> list[Note]:
        """The blocks to remove in order, each with the perplexity without it and those before, and the seconds."""
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        notes: list[Note] = json.loads(self._journal.read_bytes()) if self._journal.exists() else []
        if len(notes) == count:
            return notes
        first, calls = self._captured()
        shape = (len(self._blocks) + 1, *first.shape)
        states = torch.from_numpy(mapped(self._states_file, shape))  # [trials, sequences, tokens, hidden]
        units = [_units(len(self._blocks) - removed) * len(first) for removed in range(count)]
        with Progress("trying blocks", sum(units), sum(units[: len(notes)])) as progress:
            self._step = progress.step
            while len(notes) < count:
                notes.append(self._try(states, first, calls, [note["block"] for note in notes]))
                write_atomically(self._journal, json.dumps(notes).encode())
        self._states_file.unlink()
        return notes

    def _captured(self) -> tuple[Tensor, list[Call]]:
        """The states [sequences, tokens, hidden] before the first block, and the calls for one sequence."""
        captured = [self._blocks.capture(ids[None]) for ids in self._ids]
        return torch.cat([states for states, _ in captured]), captured[0][1]

    def _try(self, states: Tensor, first: Tensor, calls: list[Call], removed: list[int]) -> Note:
        """Run the model without `removed` and without each other block, and note the best to remove."""
        start = monotonic()
        alive = [index for index in range(len(self._blocks)) if index not in removed]
        states[0] = first  # of the run in which no other block is missing
        for position, index in enumerate(alive):
            states[position + 1] = states[0]  # from here on, the run in which this block is missing
            with self._blocks.loaded(index):
                for trial in range(position + 1):
                    self._run(states[trial], index, calls[index])
        losses = [self._loss(states[trial]) for trial in range(1, len(alive) + 1)]
        best = min(range(len(losses)), key=lambda trial: losses[trial] if isfinite(losses[trial]) else inf)
        if not isfinite(losses[best]):
            raise ModelRefused("the loss on the calibration text is not finite, whichever block is left out")
        perplexity = torch.tensor(losses[best]).exp().item()
        return {"block": alive[best], "perplexity": perplexity, "seconds": monotonic() - start}

    def _run(self, states: Tensor, index: int, call: Call) -> None:
        """Run a loaded block on `states` [sequences, tokens, hidden] in place."""
        for number in range(len(states)):
            states[number] = self._blocks.run(index, states[number : number + 1].clone(), call)[0]
            self._step()

    def _loss(self, states: Tensor) -> float:
        """The mean next-token loss over the sequences whose `states` come out of the last block."""
        with self._blocks.ending() as logits, torch.no_grad():
            losses = [
                next_token_loss(logits(states[number : number + 1], ids[None])[0], ids)
                for number, ids in enumerate(self._ids)
            ]
        return torch.stack(losses).double().mean().item()


def _units(blocks: int) -> int:
    """Runs of a block that trying each of `blocks` takes, for one sequence."""
    return blocks * (blocks + 1) // 2
