"""Rounding to a few bits: integer codes and float16 scales of groups, chosen for least squared error.

The grid of a group is its scale, with codes from -2^(bits-1); or [..., 2], a scale and a minimum, with codes from 0.
"""

import torch
from torch import Tensor

CANDIDATES = 20
"""Scales tried for each group."""
LEAST_CLIP = 0.6
"""The tightest scale tried clips at this fraction of the largest weight."""
LIMIT = torch.finfo(torch.float16).max
"""The largest scale."""


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
    return scale.squeeze(-1).clamp(-LIMIT, LIMIT).half().float()


def nearest_values(weight: Tensor, grid: Tensor, bits: int) -> Tensor:
    """The point of each group's grid nearest to each of its weights [..., columns]; grid is [...] or [..., 2]."""
    if grid.dim() < weight.dim():
        scale = grid[..., None]
        return nearest_codes(weight, scale, bits) * scale
    scale, minimum = grid[..., :1], grid[..., 1:]
    return _from_zero(weight, scale, minimum, bits) * scale + minimum


def search_grid(weight: Tensor, importance: Tensor, bits: int) -> Tensor:
    """The scale and minimum [..., 2] of each group of `weight` [..., columns] with the least cost, as `search_scales`.

    Each candidate spreads the codes over the weights and 0, a little wider or tighter; its codes then give scale and
    minimum by least squares: a line through (code, weight). 0 stays within the grid, so bfloat16 tells codes apart.
    """
    most = 2**bits - 1
    low, high = weight.amin(dim=-1, keepdim=True).clamp(max=0), weight.amax(dim=-1, keepdim=True).clamp(min=0)
    plain = _as_stored((high - low) / most, low)
    best, cost = plain, _grid_cost(weight, importance, plain, bits)
    total = importance.sum()
    for wider in torch.linspace(-1, 1, CANDIDATES).tolist():
        codes = _from_zero(weight, (high - low) / (most + wider), low, bits)
        code, value = ((importance * x).sum(dim=-1, keepdim=True) / total for x in (codes, weight))
        spread = (importance * (codes - code).square()).sum(dim=-1, keepdim=True)
        along = (importance * (codes - code) * (weight - value)).sum(dim=-1, keepdim=True)
        scale = torch.where(spread > 0, along / spread, plain[..., :1])
        minimum = (value - scale * code).clamp(max=0)
        found = _as_stored(scale, minimum)
        new = _grid_cost(weight, importance, found, bits)
        better = (new < cost) & (found[..., :1] * most + found[..., 1:] >= 0)
        best, cost = torch.where(better, found, best), torch.where(better, new, cost)
    return best


def search(weight: Tensor, importance: Tensor, bits: int, *, asymmetric: bool) -> Tensor:
    """The grids of the groups `weight` [..., columns]: scales [...], or scales and minimums [..., 2]."""
    return (search_grid if asymmetric else search_scales)(weight, importance, bits)


def round_groups(weight: Tensor, importance: Tensor, bits: int, group: int, *, asymmetric: bool = False) -> Tensor:
    """Round `weight` [rows, columns] in place on searched grids; returns them, float16 [rows, groups(, 2)]."""
    grids = []
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        exact = part.float().contiguous()
        grid = search(exact, importance[start : start + group], bits, asymmetric=asymmetric)
        part.copy_(nearest_values(exact, grid, bits).bfloat16())
        grids.append(grid)
    return torch.stack(grids, dim=1).half()


def in_groups(weight: Tensor, group: int) -> Tensor:
    """`weight` [rows, columns] as [rows, groups, group], the last group padded with zeros."""
    padding = -weight.shape[1] % group
    return torch.nn.functional.pad(weight, (0, padding)).reshape(len(weight), -1, group)


def round_with_scales(weight: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [rows, columns] rounded on the given grids [rows, groups] or [rows, groups, 2], bfloat16."""
    return nearest_values(in_groups(weight, group), scales, bits).bfloat16().flatten(1)[:, : weight.shape[1]]


def refit_scales(weight: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """Refit grids [rows, groups] or [rows, groups, 2] by least squares to the codes that they give `weight`.

    scale = sum(w q) / sum(q^2), of codes and weights less their means if there is a minimum; so the error never rises
    except by float16 rounding. A group whose codes are all equal keeps its grid. Returns float32 rounded to float16.
    """
    grouped = in_groups(weight, group)
    if scales.dim() == 2:
        codes = nearest_codes(grouped, scales[..., None], bits)
        square = codes.square().sum(dim=-1)
        fitted = torch.where(square > 0, (grouped * codes).sum(dim=-1) / square, scales)
        return fitted.clamp(-LIMIT, LIMIT).half().float()
    codes = _from_zero(grouped, scales[..., :1], scales[..., 1:], bits)
    code, value = codes.mean(dim=-1, keepdim=True), grouped.mean(dim=-1, keepdim=True)
    spread = (codes - code).square().sum(dim=-1, keepdim=True)
    scale = ((codes - code) * (grouped - value)).sum(dim=-1, keepdim=True) / spread
    minimum = value - scale * code
    inside = (spread > 0) & (minimum <= 0) & (minimum + scale * (2**bits - 1) >= 0)
    return torch.where(inside, _as_stored(scale, minimum), scales)


def _from_zero(weight: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """The codes, 0 to 2^bits - 1, nearest to (weight - minimum) / scale."""
    return ((weight - minimum) / scale.where(scale != 0, 1)).round().clamp(0, 2**bits - 1)


def _grid_cost(weight: Tensor, importance: Tensor, grid: Tensor, bits: int) -> Tensor:
    """The cost of rounding groups on `grid`, [..., 1]."""
    return (importance * (weight - nearest_values(weight, grid, bits)).square()).sum(dim=-1, keepdim=True)


def _as_stored(scale: Tensor, minimum: Tensor) -> Tensor:
    """A grid [..., 2], float32 rounded to float16."""
    return torch.cat([scale, minimum], dim=-1).clamp(-LIMIT, LIMIT).half().float()
