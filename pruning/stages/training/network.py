"""A whole model in memory for training, and the precision it computes in.

Only GGUF import and self-calibration also load a whole model, at 16 bits.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from pruning.model import base
from pruning.model.blocks import find_blocks
from pruning.stages.attention import attend_at_once
from pruning.stages.context import StageModel
from pruning.stages.team import Team

CPU = torch.device("cpu")


class Precision(NamedTuple):
    """The data type of a forward, the reason for it, and the device."""

    dtype: torch.dtype
    reason: str
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """torch's name, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def context(self) -> torch.autocast:
        """An autocast to the precision; does nothing in float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_precision(device: torch.device = CPU) -> Precision:
    """bfloat16 if `device` has instructions for it, else float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "this GPU has bfloat16", device)
        return Precision(torch.float32, "this GPU has no bfloat16", device)
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return Precision(torch.bfloat16, f"this CPU has {name}")
    return Precision(torch.float32, "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)")


def load(model: StageModel, dtype: torch.dtype, device: torch.device = CPU) -> nn.Module:
    """`model` with all parameters in memory as `dtype`, frozen; tied parameters remain tied."""
    return _quicker(base.load(model.config, model.source, dtype).to(device), dtype, device)


def load_mapped(model: StageModel, precision: Precision) -> nn.Module:
    """As `load`, but on a CPU weights stored in the precision stay in their file, which the system may drop."""
    network = base.load(model.config, model.source, precision.dtype, copy=False).to(precision.device)
    return _quicker(network, precision.dtype, precision.device)


def load_sharded(model: StageModel, precision: Precision, team: Team) -> nn.Module:
    """As `load`, but each process of `team` holds a share of the rows of every parameter (FSDP2).

    A forward or backward pass gathers one block at a time, and all processes must run it together.
    """
    network = base.skeleton(model.config)
    path, blocks = find_blocks(network)
    mesh = init_device_mesh(precision.device.type, (team.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    parts = [(f"{path}.{index}.", block) for index, block in enumerate(blocks)]
    for prefix, part in [*parts, ("", network)]:
        base.fill(network, model.source, precision.dtype, prefix=prefix, copy=False)
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return _quicker(network, precision.dtype, precision.device)


def _quicker(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """`network`, with the attention that is quicker in bfloat16 on a CPU."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        attend_at_once(network)
    return network


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep no activations of the blocks for the backward pass: each block is run again there.

    Chen et al., Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174.
    """
    for block in find_blocks(network)[1]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def logits(network: nn.Module, ids: Tensor, precision: Precision) -> Tensor:
    """The logits [batch, tokens, vocabulary] for `ids` [batch, tokens]."""
    with precision.context():
        output: Tensor = network(input_ids=ids.to(precision.device), use_cache=False).logits
    return output


def language_loss(network: nn.Module, ids: Tensor, precision: Precision) -> Tensor:
    """The mean next-token loss on `ids` [batch, tokens], nats."""
    predicted = logits(network, ids, precision)[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(predicted, ids[:, 1:].flatten().to(predicted.device))


def parameters_in_blocks(model: StageModel) -> int:
    """The number of parameters of all blocks, zeros included, without embeddings and head."""
    return sum(parameter.numel() for parameter in find_blocks(base.skeleton(model.config))[1].parameters())
