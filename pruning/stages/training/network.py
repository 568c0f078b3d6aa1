"""A model whole in memory, for training; only GGUF files and self-calibration load one too, at 16 bits.

Also says in which precision it is computed, and why.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.model import base
from pruning.model.blocks import find_blocks
from pruning.stages.context import Model

CPU = torch.device("cpu")


class Precision(NamedTuple):
    """What a forward is computed in and why, and on which device."""

    dtype: torch.dtype
    reason: str
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """As torch calls it, without its module."""
        return str(self.dtype).removeprefix("torch.")

    def context(self) -> torch.autocast:
        """Autocast to the precision; in float32 it does nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_precision(device: torch.device = CPU) -> Precision:
    """bfloat16 where `device` multiplies it, else float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "this GPU has bfloat16", device)
        return Precision(torch.float32, "this GPU has no bfloat16", device)
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return Precision(torch.bfloat16, f"this CPU has {name}")
    return Precision(torch.float32, "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)")


def load(model: Model, dtype: torch.dtype, device: torch.device = CPU) -> nn.Module:
    """`model` with every parameter in memory as `dtype`, none of them trained; tied ones stay tied."""
    return base.load(model.config, model.source, dtype).to(device)


def logits(network: nn.Module, ids: Tensor, precision: Precision) -> Tensor:
    """The logits [batch, tokens, vocabulary] for `ids` [batch, tokens]."""
    with precision.context():
        output: Tensor = network(input_ids=ids.to(precision.device), use_cache=False).logits
    return output


def language_loss(network: nn.Module, ids: Tensor, precision: Precision) -> Tensor:
    """Mean negative log-likelihood, in nats, of every id of `ids` [batch, tokens] but the first of each sequence."""
    predicted = logits(network, ids, precision)[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(predicted, ids[:, 1:].flatten().to(predicted.device))


def parameters_in_blocks(model: Model) -> int:
    """The number of parameters of all blocks, zeros included, embeddings and head left out."""
    return sum(parameter.numel() for parameter in find_blocks(base.skeleton(model.config))[1].parameters())
