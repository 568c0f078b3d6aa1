"""The processes that train one model together: each takes its part of every batch, and all make the same steps.

A process that is alone is a team of one, and nothing is exchanged. Only the first process writes files; the others read
what it wrote once it has said so.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as processes
from torch import Tensor

from pruning.errors import RecipeError, TeamBroken


class Team(NamedTuple):
    """One process among `size`, the first of which has the rank 0, and the device that it trains on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def check(self, batch: int, kind: str) -> None:
        """Raise RecipeError where the sequences of a batch cannot be shared out equally."""
        if batch % self.size:
            fitting = max(batch // self.size, 1) * self.size
            raise RecipeError(
                f"batch = {batch} of the stage {kind} cannot be shared out equally among {self.size} processes: "
                f"take a multiple of {self.size}, such as {fitting}"
            )

    def part(self, sequences: Tensor) -> Tensor:
        """This process's share of `sequences` [sequences, ...], in their order; equal shares where they divide."""
        start, stop = (number * len(sequences) // self.size for number in (self.rank, self.rank + 1))
        return sequences[start:stop]

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes, which have the same ones in the same order."""
        if self.size == 1:
            return
        if self.device.type != "cpu":
            self.wait()  # a process that has ended shows here; on a GPU the exchange itself would wait for it
        with _exchanging():
            for gradient in gradients:
                processes.all_reduce(gradient)
                gradient /= self.size

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes, the same in all of them."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _exchanging():
            processes.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def wait(self) -> None:
        """Go on once every process has come here."""
        self.total([0.0])

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let the first process do what is inside before the others do: they then find what it has written."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Team()


@contextmanager
def _exchanging() -> Iterator[None]:
    """Say in one sentence that another process has ended, which is how torch's error of an exchange comes about."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise TeamBroken(
            f"another process of this run has ended, so it cannot go on ({reason}): run the same command again, and it "
            "goes on where it was"
        ) from error
