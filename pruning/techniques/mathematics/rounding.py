"""Rounding to a few bits: symmetric integer codes and one float16 scale per group, chosen for least squared error."""

import torch
from torch import Tensor

CANDIDATES = 20
"""Scales tried for each group."""
LEAST_CLIP = 0.6
"""The tightest scale tried clips at this fraction of the largest weight."""


def nearest_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The codes, -2^(bits-1) to 2^(bits-1) - 1, nearest to weight / scale; a weight of 0 has code 0 at any scale."""
    half = 2 ** (bits - 1)
    return (weight / scale.where(scale != 0, 1)).round().clamp(-half, half - 1)


def search_scales(weight: Tensor, importance: Tensor, bits: int) -> Tensor:
    """The scale [...] of each group of `weight` [..., columns] with the least cost, float32 rounded to float16.

    The cost is sum_j importance_j (w_j - code_j * scale)^2. Each candidate maps the largest |w| to the code without a
    positive counterpart, or clips it; its codes then give its scale by least squares. A group of zeros has scale 0.
    """
    half = 2 ** (bits - 1)
    extreme = weight.gather(-1, weight.abs().argmax(dim=-1, keepdim=True))
    scale, best = torch.zeros_like(extreme), torch.zeros_like(extreme)
    for clip in torch.linspace(half / (half - 1), LEAST_CLIP, CANDIDATES).tolist():
        codes = nearest_codes(weight, extreme * (-clip / half), bits)
        weighted = importance * codes
        along = (weighted * weight).sum(dim=-1, keepdim=True)
        square = (weighted * codes).sum(dim=-1, keepdim=True)
        explained = along.square() / square  # NaN if all codes are 0, which never compares as better
        scale = torch.where(explained > best, along / square, scale)
        best = torch.where(explained > best, explained, best)
    limit = torch.finfo(torch.float16).max
    return scale.squeeze(-1).clamp(-limit, limit).half().float()


def round_groups(weight: Tensor, importance: Tensor, bits: int, group: int) -> Tensor:
    """Round `weight` [rows, columns] in place with searched scales; returns the scales [rows, groups], float16."""
    scales = []
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        exact = part.float().contiguous()
        scale = search_scales(exact, importance[start : start + group], bits)
        part.copy_((nearest_codes(exact, scale[:, None], bits) * scale[:, None]).bfloat16())
        scales.append(scale)
    return torch.stack(scales, dim=1).half()


def in_groups(weight: Tensor, group: int) -> Tensor:
    """`weight` [rows, columns] as [rows, groups, group], the last group padded with zeros."""
    padding = -weight.shape[1] % group
    return torch.nn.functional.pad(weight, (0, padding)).reshape(len(weight), -1, group)


def round_with_scales(weight: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [rows, columns] rounded to code * scale with the given `scales` [rows, groups], bfloat16."""
    spread = scales[..., None]
    codes = nearest_codes(in_groups(weight, group), spread, bits)
    return codes.mul_(spread).bfloat16().flatten(1)[:, : weight.shape[1]]


def refit_scales(weight: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """Refit `scales` [rows, groups] by least squares to the codes that they give `weight`; float32 rounded to float16.

    scale = sum(w q) / sum(q^2), so the error never rises except by float16 rounding. A group of zero codes keeps its
    scale.
    """
    grouped = in_groups(weight, group)
    codes = nearest_codes(grouped, scales[..., None], bits)
    square = codes.square().sum(dim=-1)
    fitted = torch.where(square > 0, (grouped * codes).sum(dim=-1) / square, scales)
    limit = torch.finfo(torch.float16).max
    return fitted.clamp(-limit, limit).half().float()
