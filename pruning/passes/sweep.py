"""A forward pass over the calibration data, block by block, with one block and one batch of states in memory.

Hidden states are in memory-mapped files, two in alternation, or one for each block boundary with `keep`. A journal is
written after each block: a killed pass, run again, repeats at most one block and gives a bit-identical result.
"""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, Call
from server.progress import Progress
from server.storage.files import write_atomically

logger = logging.getLogger(__name__)

Note = dict[str, Any]
"""A visit's result for its block, kept in the journal: plain JSON values."""


class Enough(BaseException):
    """Raised by a hook to end the forward of a batch early; a BaseException, so that no model code catches it."""


class BlockView:
    """One loaded block, and the states of all batches before and after it."""

    def __init__(self, sweep: "Sweep", index: int) -> None:
        self._sweep = sweep
        self.index = index

    @property
    def linears(self) -> dict[str, nn.Module]:
        """The block's linear layers, by the full names of their weights."""
        return self._sweep.blocks.linears(self.index)

    @property
    def block(self) -> nn.Module:
        """The block itself, loaded."""
        return self._sweep.blocks.model.get_submodule(f"{self._sweep.blocks.path}.{self.index}")

    @property
    def first(self) -> slice:
        """The sequences of the first batch."""
        return self._sweep.rows[0]

    def sample(self) -> Tensor:
        """Run the block on the first batch and return its states [sequences, tokens, hidden], without storing them."""
        rows = self.first
        call = self._sweep.calls[rows.stop - rows.start][self.index]
        return self._sweep.blocks.run(self.index, self._sweep.states(self.index)[rows].clone(), call)

    def run(self, then: Callable[[slice], None] = lambda rows: None) -> None:
        """Run the block on every batch for its hooks and drop the outputs; calls `then` with the rows after each."""
        for rows in self._sweep.rows:
            self.see(rows)
            then(rows)
            self._sweep.step()

    def see(self, rows: slice) -> None:
        """Run the block on one batch for its hooks, which may raise Enough to end it early, and drop the output."""
        with suppress(Enough):
            self._forward(rows)

    def keep(self, rows: slice) -> None:
        """Run the block on one batch and store the states for the next block."""
        self._sweep.states(self.index + 1)[rows] = self._forward(rows)

    def before(self, rows: slice) -> Tensor:
        """The states [sequences, tokens, hidden] of one batch before the block."""
        return self._sweep.states(self.index)[rows]

    def advance(self, see: Callable[[Tensor, Tensor], None] | None = None) -> None:
        """Run the block on every batch and store the states for the next block.

        `see` is called with the states of each batch before and after, [sequences, tokens, hidden].
        """
        before, after = self._sweep.states(self.index), self._sweep.states(self.index + 1)
        for rows in self._sweep.rows:
            after[rows] = output = self._forward(rows)
            if see:
                see(before[rows], output)
            self._sweep.step()

    def _forward(self, rows: slice) -> Tensor:
        """The states of one batch after the block; raises ModelRefused unless they are finite."""
        states = self._sweep.states(self.index)[rows].clone()  # a block may write into its input
        output = self._sweep.blocks.run(self.index, states, self._sweep.calls[rows.stop - rows.start][self.index])
        if not output.isfinite().all():
            given = self._sweep.states(self.index)[rows].isfinite().all()
            what = "computes states that are not finite from" if given else "gets states that are not finite from"
            raise ModelRefused(f"{self._sweep.blocks.path}.{self.index} {what} sequence {rows.start} and on")
        return output


Visit = Callable[[BlockView], Note]


class Sweep:
    """A resumable pass over `ids` [sequences, tokens] in batches, with its files in `folder`.

    With `keep` the states at every block boundary can be read after the pass, with `last` those after the last block.
    """

    agreed: Callable[[int], int] = staticmethod(lambda done: done)
    """The finished blocks to resume after, given those of this process: with several, the fewest that any has."""
    shown = True
    """Whether `visit` shows its progress."""

    def __init__(
        self, blocks: Blocks, ids: Tensor, batch: int, folder: Path, *, keep: bool = False, last: bool = False
    ) -> None:
        self.blocks = blocks
        self.calls: dict[int, list[Call]] = {}  # by the number of sequences in a batch
        self.rows = [slice(start, min(start + batch, len(ids))) for start in range(0, len(ids), batch)]
        self._ids = ids
        self._folder = folder
        self._journal = folder / "journal.json"
        self._read_after = keep or last
        self._count = len(blocks) + 1 if keep else 2
        self._files: list[numpy.memmap[Any, Any]] = []
        self.step: Callable[[], None] = lambda: None

    def visit(self, visit: Visit, what: str, runs: int) -> list[Note]:
        """Call `visit` for each block in order, but for the blocks that a killed pass finished; returns all notes.

        `runs` is the number of forwards per batch, for the progress bar labelled `what`.
        """
        notes = self._begin()
        unit = len(self.rows) * runs
        with Progress(what, len(self.blocks) * unit, len(notes) * unit, shown=self.shown) as progress:
            self.step = progress.step
            for index in range(len(notes), len(self.blocks)):
                with self.blocks.loaded(index):
                    notes.append(visit(BlockView(self, index)))
                self._files[(index + 1) % self._count].flush()
                write_atomically(self._journal, json.dumps(notes).encode())
        return notes

    def states(self, index: int) -> Tensor:
        """The states [sequences, tokens, hidden] before block `index`, a view of the mapped file."""
        return torch.from_numpy(self._files[index % self._count])

    def _begin(self) -> list[Note]:
        """Capture the blocks' calls and, unless resuming, the states before block 0; returns the finished notes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        notes: list[Note] | None = json.loads(self._journal.read_bytes()) if self._journal.exists() else None
        needed = self._read_after or len(notes or []) < len(self.blocks)
        if notes is not None and needed and not self._there():
            logger.warning("state files are missing in %s: starting anew", self._folder)
            notes = None
        done = self.agreed(-1 if notes is None else len(notes))
        notes = None if notes is None or done < 0 else notes[:done]
        for rows in self.rows:
            if notes is None or rows.stop - rows.start not in self.calls:
                states, calls = self.blocks.capture(self._ids[rows])
                self.calls.setdefault(rows.stop - rows.start, calls)
                if not self._files:
                    self._map((*self._ids.shape, states.shape[-1]))
                if notes is None:
                    self.states(0)[rows] = states
        if notes is None:
            self._files[0].flush()
            write_atomically(self._journal, b"[]")
        return notes or []

    def _map(self, shape: tuple[int, ...]) -> None:
        """Map the state files."""
        self._files += [mapped(self._folder / f"states-{number}", shape) for number in range(self._count)]

    def _there(self) -> bool:
        """Whether all state files exist, as they do once there is a journal."""
        return all((self._folder / f"states-{number}").exists() for number in range(self._count))


class FollowingSweep(Sweep):
    """Another model's states over the same ids, computed block by block beside a pass; as resumable as the pass."""

    def __init__(self, blocks: Blocks, ids: Tensor, batch: int, folder: Path) -> None:
        super().__init__(blocks, ids, batch, folder)
        self._journal = folder / "followed.json"
        if not self._there():
            self._journal.unlink(missing_ok=True)
        self._done = len(self._begin())

    def reach(self, index: int) -> None:
        """Compute the states before block `index` unless they exist; starts over if they were lost or overwritten."""
        if self._done > index + 1:  # the wanted states are overwritten
            self._journal.unlink()
            self._done = len(self._begin())
        if self._done < index:
            logger.warning("states are missing in %s: computing them again up to block %d", self._folder, index)
        for number in range(self._done, index):
            self.after(number)

    def after(self, index: int) -> Tensor:
        """Run block `index` and return the states [sequences, tokens, hidden] after it; those before it are kept."""
        self.reach(index)
        with self.blocks.loaded(index):
            BlockView(self, index).advance()
        self.flush(index + 1)
        return self.states(index + 1)

    def flush(self, index: int) -> None:
        """Make the states before block `index` durable, before the next block overwrites those before `index` - 1."""
        self._files[index % 2].flush()
        write_atomically(self._journal, json.dumps([{}] * index).encode())
        self._done = index


def pass_on(view: BlockView) -> Note:
    """A visit that only runs the block and notes the seconds."""
    start = monotonic()
    view.advance()
    return {"seconds": monotonic() - start}


def mapped(path: Path, shape: tuple[int, ...]) -> "numpy.memmap[Any, Any]":
    """A memory-mapped file of float32; reserves its disk space now, since a full disk would kill the process later."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * int(numpy.prod(shape)))
    return numpy.memmap(path, dtype=numpy.float32, mode="r+", shape=shape)
