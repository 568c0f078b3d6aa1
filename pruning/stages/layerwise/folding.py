"""Finds a module whose output can be divided by a scale that some linear layers then multiply back in, by trial.

Knows no architecture: a norm or linear layer is accepted if the block's output stays the same.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.model.blocks import is_linear, weight_of
from pruning.passes.sweep import BlockView
from server.storage.files import write_atomically

TOLERANCE = 1e-3
"""Largest change of the block's output by a fold, relative to scaling the layers alone: rounding error only."""


class Fold(NamedTuple):
    """A module of a block whose output can be divided by a scale per feature."""

    name: str
    """Path of the module within the block."""
    module: nn.Module
    offset: float = 0.0
    """1 for a norm that multiplies by 1 + weight, such as Gemma's; otherwise 0."""

    def divide(self, scale: Tensor) -> Tensor:
        """Divide the output by `scale` [features]; returns the scale in effect after rounding a norm's weight."""
        weight = self.module.get_parameter("weight").data
        if is_linear(self.module):
            weight_of(self.module).div_(scale[:, None])
        else:
            before = weight + self.offset
            rounded = (before / scale - self.offset).bfloat16().to(weight.dtype)
            weight.copy_(
                torch.where(rounded + self.offset != 0, rounded, weight)
            )  # 1 + weight may round to 0, which would lose the feature
            after = weight + self.offset
            scale = torch.where(after != 0, before / after, scale)  # the layers take up what rounding lost
        bias = self.module._parameters.get("bias")
        if bias is not None:
            bias.data.copy_((bias.data / scale).bfloat16())
        return scale

    def tensors(self) -> dict[str, Tensor]:
        """The module's tensors, which `divide` changes in place."""
        return {name: parameter.data for name, parameter in self.module.named_parameters(recurse=False)}


class FoldFinder:
    """Finds folds; failures are kept in the file `memory`, so neither later blocks nor a rerun try them again."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        failed = json.loads(memory.read_bytes()) if memory.exists() else []
        self._failed: set[tuple[str, str, float]] = {(who, name, offset) for who, name, offset in failed}

    def find(self, view: BlockView, users: Mapping[str, nn.Module]) -> Fold | None:
        """The fold for the shared input of `users` under which a trial batch gives the same block output, or None."""
        who = ", ".join(users).replace(f".{view.index}.", ".*.")
        folds = [f for f in _candidates(view.block, users.values()) if (who, f.name, f.offset) not in self._failed]
        if not folds:
            return None
        columns = weight_of(next(iter(users.values()))).shape[1]
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
        scale = torch.linspace(0.5, 2, columns)[order]
        expected = view.sample()
        effect = (_trial(view, users.values(), None, scale) - expected).norm()
        if not effect:
            return None
        for fold in folds:
            if (_trial(view, users.values(), fold, scale) - expected).norm() < TOLERANCE * effect:
                return fold
            self._failed.add((who, fold.name, fold.offset))
            write_atomically(self._memory, json.dumps(sorted(self._failed)).encode())
        return None


def _candidates(block: nn.Module, users: Iterable[nn.Module]) -> list[Fold]:
    """All norms and linear layers of the block whose outputs match the users' inputs in number, norms first."""
    users = list(users)
    columns = weight_of(users[0]).shape[1]
    norms, linears = [], []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if any(module is user for user in users) or not isinstance(weight, Tensor):
            continue
        if is_linear(module) and len(weight_of(module)) == columns:
            linears.append(Fold(name, module))
        elif weight.shape == (columns,):
            norms += [Fold(name, module), Fold(name, module, 1.0)]
    return norms + linears


def _trial(view: BlockView, users: Iterable[nn.Module], fold: Fold | None, scale: Tensor) -> Tensor:
    """The block's output on one batch with `users` scaled and `fold` divided; restores the weights."""
    changed = [weight_of(user) for user in users] + (list(fold.tensors().values()) if fold else [])
    before = [tensor.clone() for tensor in changed]
    effective = fold.divide(scale) if fold else scale
    for user in users:
        weight_of(user).mul_(effective)
    output = view.sample()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    return output
