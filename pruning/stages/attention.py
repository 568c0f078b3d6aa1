"""Attention for training in bfloat16 on a CPU: all scores of a sequence at once, kept for the backward pass.

torch's fused kernel takes three to four times as long there at a few hundred tokens. Scores and probabilities are
rounded to bfloat16, as in transformers' eager attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "secateur_whole_scores"
LONGEST = 1024
"""Tokens of the longest sequence; the scores of a longer one leave the caches."""
OTHER = ("dropout", "softcap", "s_aux", "position_bias")
"""Options of attention that the fused kernel gets: dropout, and what some architectures add to scores."""


def attend_at_once(network: nn.Module) -> None:
    """Have `network` attend by `whole_scores`, if it attends by torch's fused kernel."""
    config: Any = network.config
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, whole_scores)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        network.set_attn_implementation(NAME)  # type: ignore[operator]


def whole_scores(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention [batch, tokens, heads, size] of queries [batch, heads, tokens, size] in transformers' interface.

    What it cannot do, such as other types, caches and long sequences, the fused kernel does.
    """
    batch, heads, tokens, size = query.shape
    groups = key.shape[1]
    plain = query.dtype == torch.bfloat16 and key.shape[2] == tokens <= LONGEST and value.shape[3] == size
    if not plain or any(_given(options.get(name)) for name in OTHER) or not _causal(module, options):
        fused: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return fused
    if attention_mask is None:
        attention_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    bias = torch.zeros(attention_mask.shape, dtype=query.dtype).masked_fill_(~attention_mask, -torch.inf)
    bias = bias.expand(batch, heads, tokens, tokens).reshape(batch * groups, -1, tokens)
    folded = query.reshape(batch * groups, -1, size)  # the heads of a group are further rows of its one product
    keys, values = (tensor.reshape(batch * groups, tokens, size) for tensor in (key, value))
    scaling = options.get("scaling")
    scale = size**-0.5 if scaling is None else scaling
    found: Tensor = _Attention.apply(folded, keys, values, bias, scale)  # type: ignore[no-untyped-call]
    return found.view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None


def _given(option: Any) -> bool:
    """Whether an option is more than its neutral value; a tensor is."""
    return isinstance(option, Tensor) or bool(option)


def _causal(module: nn.Module, options: dict[str, Any]) -> bool:
    """Whether a token attends to none after it."""
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


class _Attention(torch.autograd.Function):
    """softmax(scale Q K^T + bias) V for queries and biases [n, rows, ...], keys and values [n, tokens, size]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        likely = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale).softmax(dim=-1)
        ctx.save_for_backward(query, key, value, likely)
        ctx.scale = scale
        return torch.bmm(likely, value)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, likely = ctx.saved_tensors
        gradient = outputs[0]
        values = torch.bmm(gradient.transpose(1, 2), likely).transpose(1, 2)
        scores = torch.bmm(gradient, value.transpose(1, 2))
        scores = torch._softmax_backward_data(scores, likely, -1, likely.dtype).mul_(ctx.scale)
        keys = torch.bmm(query.transpose(1, 2), scores).transpose(1, 2)  # thrice as fast as scores^T times query
        return torch.bmm(scores, key), keys, values, None, None
