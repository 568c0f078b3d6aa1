"""Perplexity of a saved artifact, read by the reader and built by the loader that will serve it.

Non-overlapping windows; exp of the mean over windows of the mean negative log-likelihood of all tokens but the first.
"""

import torch
from torch import Tensor, nn

from pruning.model import find_blocks, is_linear, weight_of
from pruning.progress import Progress
from server.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import load

GROUP = 32
"""Columns that share one 16-bit scale in the int8 comparison."""


def dense(artifact: Artifact) -> nn.Module:
    """The artifact's model on the CPU in float32, so that the figure depends on no hardware."""
    return load(artifact, dtype=torch.float32, device=torch.device("cpu"))


@torch.inference_mode()
def perplexity(model: nn.Module, windows: Tensor, what: str) -> float:
    """The perplexity of `model` on `windows` [n, tokens] of ids."""
    losses = []
    with Progress(what, len(windows)) as progress:
        for ids in windows:
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]  # [tokens - 1, vocabulary]
            losses.append(nn.functional.cross_entropy(logits.float(), ids[1:]).double())
            progress.step()
    return torch.stack(losses).mean().exp().item()


def quantise(model: nn.Module) -> int:
    """Round the linears of all blocks to int8 in groups of 32 columns, in place; returns the bytes that saves."""
    saved = 0
    for module in find_blocks(model)[1].modules():
        if is_linear(module):
            weight = weight_of(module)
            weight.copy_(rounded(weight))
            saved += 2 * weight.numel() - weight.numel() - 2 * weight.shape[0] * -(-weight.shape[1] // GROUP)
    return saved


def rounded(weight: Tensor) -> Tensor:
    """`weight` [rows, columns] as symmetric int8 with a float16 scale for each 32 columns would give it back."""
    rows, columns = weight.shape
    grouped = nn.functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / 127).half().float()
    steps = (grouped / scale.where(scale > 0, 1)).round().clamp(-127, 127)
    return (steps * scale).view(rows, -1)[:, :columns]
