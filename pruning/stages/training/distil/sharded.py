"""The student of distillation whose weights, gradients and moments are divided among processes (FSDP2).

Zhao et al., PyTorch FSDP, https://arxiv.org/abs/2304.11277. Each process has a share of the rows of every parameter.
The journal holds whole tensors, gathered one at a time, so that any number of processes can resume.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor, nn
from torch.distributed import DistError

from pruning.errors import RecipeError
from pruning.model.weights import WeightSource
from pruning.recipe.training import Distill
from pruning.stages.team import Team, lost_process
from pruning.stages.training.student import Student, TrainedParameters


class ShardedStudent(Student):
    """Trains this process's rows of a network of `load_sharded`, whose backward pass averages the gradients."""

    def __init__(self, network: nn.Module, trained: TrainedParameters, team: Team) -> None:
        self._team = team
        self._rows = {name: len(parameter) for name, parameter in trained.parameters.items()}
        super().__init__(network, trained)

    def combine_gradients(self, team: Team, limit: float) -> None:
        """Scale the gradients, averaged already, down to the norm `limit` of all processes' rows."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        own = nn.utils.get_total_norm(gradients).item()
        norm = sqrt(team.total([own**2])[0])
        nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, torch.tensor(norm))

    def collected(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """In the first process the whole tensors, each gathered when it is read; the others send their rows now."""
        whole = _Collected(tensors, self._rows, self._team)
        return whole if self._team.leads else dict(whole)

    def own_part(self, kept: WeightSource) -> WeightSource:
        """This process's rows of each tensor of `kept`."""
        return OwnRows(kept, self._team)


class OwnRows(WeightSource):
    """This process's rows of the tensors of `source`; numbers are whole."""

    def __init__(self, source: WeightSource, team: Team) -> None:
        self._source, self._team = source, team

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """This process's rows of the tensor `name`."""
        whole = self._source.tensor(name)
        return self._team.rows(whole) if whole.dim() else whole


class _Collected(Mapping[str, Tensor]):
    """Whole tensors by "name" or "kind/name", which all processes must read in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor], rows: Mapping[str, int], team: Team) -> None:
        self._tensors, self._rows, self._team = tensors, rows, team

    def __getitem__(self, key: str) -> Tensor:
        own = self._tensors[key]
        return self._team.collect(own, self._rows[key.rpartition("/")[2]]) if own.dim() else own

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def refuse_processes(stage: Distill, team: Team) -> None:
    """Raise RecipeError unless the processes of `team` can divide the model and the held-out sequences of `stage`."""
    if stage.memory != "sharded":
        return
    if team.size == 1:
        raise RecipeError(
            'memory = "sharded" divides the model among processes, and there is one: give --processes 2 or more, '
            'start with torchrun, or choose memory = "plenty" or "little"'
        )
    if stage.held_out % team.size:
        fitting = max(stage.held_out // team.size, 1) * team.size
        raise RecipeError(
            f"held_out = {stage.held_out} of distill does not divide among {team.size} processes, which "
            f'memory = "sharded" needs: choose a multiple of {team.size}, such as {fitting}'
        )


@contextmanager
def noticing_lost_process() -> Iterator[None]:
    """Turn the error of a pass through a sharded network into TeamBroken where another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise lost_process(error) from error
        raise
