"""A backward pass, block by block: gradients of the loss, with one block and one sequence in memory.

A forward pass keeps the states at every block boundary in mapped files, deleted at the end; checkpointing fewer would
take a third more time. Then each block, from the last to the first, is run again with its graph, and the gradient with
respect to the states before it is passed to the block before.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks
from pruning.model.weights import Shards, write_file
from pruning.passes.sweep import Note, Sweep, mapped, pass_on
from server.progress import Progress
from server.storage.files import write_atomically

logger = logging.getLogger(__name__)


class BackwardView:
    """One loaded block, the states before it, and the loss gradients with respect to the states after it."""

    def __init__(self, backward: "Backward", index: int) -> None:
        self._backward = backward
        self.index = index

    @property
    def linears(self) -> dict[str, nn.Module]:
        """The block's linear layers, by the full names of their weights."""
        return self._backward.blocks.linears(self.index)

    @property
    def scale(self) -> float:
        """Turns sums over tokens of squared gradients into means per token of a loss summed over a sequence."""
        sequences, tokens = self._backward.shape
        return (tokens - 1) ** 2 / (sequences * tokens)

    def run(self) -> None:
        """Run every sequence through the block and back, for hooks; weights get no gradients."""
        for number in range(self._backward.count):
            self._backward.through(self.index, number)

    def sequences(self) -> Iterator[dict[str, Tensor]]:
        """For each sequence, the loss gradients with respect to the block's linear weights, by full name, as stored.

        Must be iterated to the end: it also computes the gradients with respect to the states before the block.
        """
        weights = {name: linear.get_parameter("weight").requires_grad_() for name, linear in self.linears.items()}
        for number in range(self._backward.count):
            self._backward.through(self.index, number)
            yield {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
            for weight in weights.values():
                weight.grad = None


Visit = Callable[[BackwardView], Note]


class Backward:
    """A resumable backward pass of each sequence's mean next-token loss over `ids` [sequences, tokens].

    Its files are in `folder`.
    """

    def __init__(self, blocks: Blocks, ids: Tensor, folder: Path) -> None:
        self.blocks = blocks
        self.count = len(ids)
        self.shape = (len(ids), ids.shape[1])
        self._ids = ids
        self._folder = folder
        self._journal = folder / "backward.json"
        self._sweep = Sweep(blocks, ids, 1, folder, keep=True)
        self._files: list[numpy.memmap[Any, Any]] = []
        self._step: Callable[[], None] = lambda: None

    def visit(self, visit: Visit) -> list[Note]:
        """Call `visit` for each block, the last first, but for the blocks that a killed pass finished.

        Returns a note with the seconds of the forward pass and the loss, then the blocks' notes, the last block first.
        """
        notes: list[Note] = json.loads(self._journal.read_bytes()) if self._journal.exists() else []
        if len(notes) > len(self.blocks):
            return notes
        forward = self._sweep.visit(pass_on, "going forward", 1)
        shape = tuple(self._sweep.states(0).shape)
        paths = [self._folder / f"gradients-{number}" for number in range(2)]
        if notes and not all(path.exists() for path in paths):
            logger.warning("gradient files are missing in %s: starting anew", self._folder)
            notes = []
        self._files = [mapped(path, shape) for path in paths]
        unit = self.count
        with Progress("going backward", (len(self.blocks) + 1) * unit, len(notes) * unit) as progress:
            self._step = progress.step
            if not notes:
                self._note(notes, {"seconds": sum(note["seconds"] for note in forward) + self._end()})
            for index in range(len(self.blocks) - len(notes), -1, -1):
                with self.blocks.loaded(index):
                    self._note(notes, visit(BackwardView(self, index)))
        self._tidy()
        return notes

    def gradients(self, index: int) -> Tensor:
        """The loss gradients with respect to the states before block `index`, [sequences, tokens, hidden]."""
        return torch.from_numpy(self._files[index % 2])

    def through(self, index: int, number: int) -> None:
        """Backpropagate sequence `number` through the loaded block `index` and store the gradients before it."""
        rows = slice(number, number + 1)
        states = self._sweep.states(index)[rows].clone().requires_grad_()
        call = self._sweep.calls[1][index]
        after = self.blocks.run(index, states.clone(), call, graph=True)  # a block may write into its input
        after.backward(self.gradients(index + 1)[rows])  # type: ignore[no-untyped-call]
        assert states.grad is not None
        self.gradients(index)[rows] = states.grad
        self._step()

    def _end(self) -> float:
        """Compute the loss gradients with respect to the states after the last block; returns the seconds."""
        start, last = monotonic(), len(self.blocks)
        with self.blocks.ending() as logits:
            for number, ids in enumerate(self._ids):
                states = self._sweep.states(last)[number : number + 1].clone().requires_grad_()
                loss = next_token_loss(logits(states, ids[None])[0], ids)
                loss.backward()  # type: ignore[no-untyped-call]
                assert states.grad is not None
                self.gradients(last)[number] = states.grad[0]
                self._step()
        return monotonic() - start

    def _note(self, notes: list[Note], note: Note) -> None:
        """Make the latest gradients durable and journal `note`."""
        for file in self._files:
            file.flush()
        notes.append(note)
        write_atomically(self._journal, json.dumps(notes).encode())

    def _tidy(self) -> None:
        """Remove the files of states and gradients, not needed once the journal is complete."""
        for pattern in ("states-*", "gradients-*"):
            for path in self._folder.glob(pattern):
                path.unlink()


class Moments:
    """E[g^p] of the gradients g of a model's weights over the sequences, read from files."""

    def __init__(self, files: list[Path], powers: tuple[int, ...], seconds: float) -> None:
        self._shards = Shards(files)
        self._names = set(self._shards.names())
        self._powers = powers
        self.seconds = seconds

    def of(self, name: str, linear: nn.Module) -> dict[int, Tensor]:
        """E[g^p] of the weight `name` of `linear`, [outputs, inputs], float32, by p.

        Raises ModelRefused where the weight got no gradients or they are not finite.
        """
        if any(f"{name}.{power}" not in self._names for power in self._powers):
            raise ModelRefused(
                f"{name} is never reached by the calibration data, so it has no gradient to be judged by"
            )
        found = {power: self._shards.tensor(f"{name}.{power}") for power in self._powers}
        if not all(moment.isfinite().all() for moment in found.values()):
            raise ModelRefused(f"the gradients of {name} are not finite, so it cannot be judged by them")
        return {power: found[power] if isinstance(linear, nn.Linear) else found[power].T for power in found}


def moments(blocks: Blocks, ids: Tensor, folder: Path, powers: tuple[int, ...]) -> Moments:
    """Measure E[g^p] of each linear weight over `ids` [sequences, tokens]; g is a sequence's gradient."""
    notes = Backward(blocks, ids, folder).visit(_Measure(folder, powers))
    files = [_file(folder, index) for index in range(len(blocks))]
    return Moments(files, powers, sum(note["seconds"] for note in notes))


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of `ids` [tokens], but the first, under `logits` [tokens, vocabulary]."""
    return nn.functional.cross_entropy(logits[:-1].float(), ids[1:])


class _Measure:
    """A visit that writes the moments of a block's gradients to a file."""

    def __init__(self, folder: Path, powers: tuple[int, ...]) -> None:
        self._folder = folder
        self._powers = powers

    def __call__(self, view: BackwardView) -> Note:
        start = monotonic()
        sums: dict[str, Tensor] = {}
        count = 0
        for gradients in view.sequences():
            count += 1
            for name, gradient in gradients.items():
                for power in self._powers:
                    key = f"{name}.{power}"
                    sums[key] = sums.get(key, torch.zeros(())) + gradient**power
        write_file(_file(self._folder, view.index), {key: total / count for key, total in sums.items()})
        return {"seconds": monotonic() - start}


def _file(folder: Path, index: int) -> Path:
    """The file of the moments of block `index`."""
    return folder / f"moments-{index:04}.safetensors"
