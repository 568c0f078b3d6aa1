"""Processes that share out sequences: in training those of every batch, in a layerwise stage those of the calibration.

A single process is a team of one and exchanges nothing. Only the first process writes files; the others wait for it
before they read.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as processes
from torch import Tensor

from pruning.errors import RecipeError, TeamBroken

CHUNK = 1 << 24
"""Numbers of a sum that are exchanged at once: 64 MB of each process."""


class Team(NamedTuple):
    """This process's rank among `size` processes, and the device it trains on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes the files: the one of rank 0."""
        return self.rank == 0

    def check(self, batch: int, kind: str) -> None:
        """Raise RecipeError unless a batch of `batch` sequences divides among the processes; `kind` names the stage."""
        if batch % self.size:
            fitting = max(batch // self.size, 1) * self.size
            raise RecipeError(
                f"batch = {batch} of the stage {kind} does not divide among {self.size} processes: "
                f"choose a multiple of {self.size}, such as {fitting}"
            )

    def part(self, sequences: Tensor) -> Tensor:
        """This process's share of `sequences` [sequences, ...], in order; shares differ by at most one sequence."""
        start, stop = (number * len(sequences) // self.size for number in (self.rank, self.rank + 1))
        return sequences[start:stop]

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes, which all pass the same ones in the same order."""
        if self.size == 1:
            return
        if self.device.type != "cpu":
            self.wait()  # detects a lost process, for which the exchange itself would wait on a GPU
        with _reporting_lost_process():
            for gradient in gradients:
                processes.all_reduce(gradient)
                gradient /= self.size

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes; the same in all of them."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _reporting_lost_process():
            processes.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def add_in_order(self, sums: Tensor) -> None:
        """Replace `sums` by their sum over the processes, added from rank 0 up, so that all get the same bits."""
        if self.size == 1:
            return
        flat = sums.view(-1)
        with _reporting_lost_process():
            for own in torch.split(flat, CHUNK):
                parts = [torch.empty_like(own) for _ in range(self.size)]
                processes.all_gather(parts, own)
                own.copy_(parts[0])
                for part in parts[1:]:
                    own += part

    def least(self, value: int) -> int:
        """The smallest `value` of all processes."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        with _reporting_lost_process():
            processes.all_reduce(found, processes.ReduceOp.MIN)
        return int(found)

    def send_out(self, owner: int, weight: Tensor, made: Any) -> Any:
        """Give all processes the `weight`, in place, and what else was `made` by the process of rank `owner`."""
        if self.size == 1:
            return made
        held = [made]
        sent = weight.contiguous()
        with _reporting_lost_process():
            processes.broadcast_object_list(held, owner)
            processes.broadcast(sent, owner)
        weight.copy_(sent)
        return held[0]

    def rows(self, whole: Tensor) -> Tensor:
        """This process's share of the rows of `whole`, as torch shards them: rounded up, so the last may have fewer."""
        size = -(-len(whole) // self.size)
        return whole[self.rank * size :][:size]

    def collect(self, own: Tensor, rows: int) -> Tensor:
        """The tensor of `rows` rows in the first process, given what `rows` left to each; `own` in the others."""
        padded = own.new_zeros(-(-rows // self.size), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.leads else None
        with _reporting_lost_process():
            processes.gather(padded, parts)
        return torch.cat(parts)[:rows] if parts else own

    def wait(self) -> None:
        """Block until every process gets here."""
        self.total([0.0])

    @contextmanager
    def first(self) -> Iterator[None]:
        """Run the body in the first process before the others, which then find what it wrote."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Team()


@contextmanager
def _reporting_lost_process() -> Iterator[None]:
    """Turn torch's RuntimeError from an exchange into TeamBroken, which says how to go on."""
    try:
        yield
    except RuntimeError as error:
        raise lost_process(error) from error


def lost_process(error: RuntimeError) -> TeamBroken:
    """The error of a process that lost another, which says how to go on."""
    reason = (str(error).splitlines() or [""])[0]
    return TeamBroken(f"another process of this run has ended ({reason}): run the same command again to resume")
