"""Depth pruning by trial: removes, one after another, the block whose absence raises the perplexity least.

Song et al., SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks,
https://arxiv.org/abs/2402.09025, algorithm 1. All trials of one removal share one pass, which loads each block once; a
killed run repeats at most one removal.
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
from server.progress import Progress
from server.storage.files import write_atomically


class RemovalTrials:
    """Tries the removal of blocks on a few sequences, `ids` [sequences, tokens]; journals each removal in `folder`."""

    def __init__(self, blocks: Blocks, ids: Tensor, folder: Path) -> None:
        self._blocks = blocks
        self._ids = ids
        self._journal = folder / "removed.json"
        self._states_file = folder / "trials"
        self._step: Callable[[], None] = lambda: None

    def remove(self, count: int) -> list[Note]:
        """The first `count` removals in order; each note has the block, the perplexity without it, and the seconds."""
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
        """The states [sequences, tokens, hidden] before the first block, and the blocks' calls for one sequence."""
        captured = [self._blocks.capture(ids[None]) for ids in self._ids]
        return torch.cat([states for states, _ in captured]), captured[0][1]

    def _try(self, states: Tensor, first: Tensor, calls: list[Call], removed: list[int]) -> Note:
        """Try to remove each remaining block besides `removed`; notes the one whose removal costs least perplexity."""
        start = monotonic()
        alive = [index for index in range(len(self._blocks)) if index not in removed]
        states[0] = first  # trial 0: only `removed` are missing
        for position, index in enumerate(alive):
            states[position + 1] = states[0]  # this trial skips the block, so it starts from trial 0's state
            with self._blocks.loaded(index):
                for trial in range(position + 1):
                    self._run(states[trial], index, calls[index])
        losses = [self._loss(states[trial]) for trial in range(1, len(alive) + 1)]
        best = min(range(len(losses)), key=lambda trial: losses[trial] if isfinite(losses[trial]) else inf)
        if not isfinite(losses[best]):
            raise ModelRefused("the loss on the calibration text is not finite, whichever block is removed")
        perplexity = torch.tensor(losses[best]).exp().item()
        return {"block": alive[best], "perplexity": perplexity, "seconds": monotonic() - start}

    def _run(self, states: Tensor, index: int, call: Call) -> None:
        """Run a loaded block on `states` [sequences, tokens, hidden], in place."""
        for number in range(len(states)):
            states[number] = self._blocks.run(index, states[number : number + 1].clone(), call)[0]
            self._step()

    def _loss(self, states: Tensor) -> float:
        """The mean next-token loss over the sequences, nats, from the `states` after the last block."""
        with self._blocks.ending() as logits, torch.no_grad():
            losses = [
                next_token_loss(logits(states[number : number + 1], ids[None])[0], ids)
                for number, ids in enumerate(self._ids)
            ]
        return torch.stack(losses).double().mean().item()


def _units(blocks: int) -> int:
    """Block forwards per sequence to try removing each of `blocks` blocks."""
    return blocks * (blocks + 1) // 2
