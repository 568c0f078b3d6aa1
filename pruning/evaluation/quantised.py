"""The dense base quantised to about the bytes of an artifact: what pruning has to be better than.

Symmetric round-to-nearest, each group's scale searched for the least squared error; needs no data and takes seconds.
"""

from collections.abc import Iterator
from itertools import product
from typing import get_args

import msgspec
import torch
from torch import Tensor, nn

from pruning.model import find_blocks, is_linear, weight_of
from pruning.rounding import nearest, search_scale
from server.checkpoint.layouts import Group, Quantised, size_of
from server.checkpoint.quantised import dequantise


class Choice(msgspec.Struct, frozen=True):
    """Bits and group of all linears in the blocks, and the bytes that the whole model then has."""

    bits: int
    group: int
    bytes: int

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"base, {self.bits} bits in groups of {self.group}"


def choose(model: nn.Module, size: int, wanted: int) -> Choice:
    """Of 8 and 4 bits in groups of 32, 64 and 128, what turns the `size` bytes of `model` into closest to `wanted`."""
    shapes = [tuple(weight_of(module).shape) for module in _linears(model)]
    choices = []
    for bits, group in product((8, 4), get_args(Group)):
        saved = 0
        for rows, columns in shapes:
            layout = Quantised(bits=bits, group=group, columns=columns)  # type: ignore[arg-type]
            saved += rows * 2 * columns - size_of(layout, rows)
        choices.append(Choice(bits, group, size - saved))
    return min(choices, key=lambda choice: abs(choice.bytes - wanted))


@torch.no_grad()
def quantise(model: nn.Module, choice: Choice) -> None:
    """Round the linears of all blocks of `model`; their weights are new tensors, as the old ones may be the file's."""
    for module in _linears(model):
        weight = weight_of(module)
        result = rounded(weight.float(), choice).to(weight.dtype)
        parameter = module.get_parameter("weight")
        parameter.data = result if isinstance(module, nn.Linear) else result.T.contiguous()


def rounded(weight: Tensor, choice: Choice) -> Tensor:
    """`weight` [rows, columns] as its codes and scales give it back, bfloat16."""
    rows, columns = weight.shape
    grouped = nn.functional.pad(weight, (0, -columns % choice.group)).view(rows, -1, choice.group)
    scales = search_scale(grouped, torch.ones(()), choice.bits)  # [rows, groups]
    codes = nearest(grouped, scales[..., None], choice.bits).view(rows, -1)[:, :columns]
    return dequantise(codes, scales)


def _linears(model: nn.Module) -> Iterator[nn.Module]:
    """The linears in all blocks."""
    return (module for module in find_blocks(model)[1].modules() if is_linear(module))
