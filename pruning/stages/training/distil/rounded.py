"""The student of quantisation-aware distillation: its network has codes times scales, and trains weights behind them.

Gradients pass the rounding as they are, the straight-through estimator: Bengio et al., Estimating or Propagating
Gradients Through Stochastic Neurons, https://arxiv.org/abs/1308.3432, section 4. Scales are not trained but fitted to
the weights again and again, so that they follow what the weights of their group have in common.
"""

import logging

import torch
from torch import Tensor, nn

from pruning.model.weights import WeightSource
from pruning.recipe.options import Quantise
from pruning.stages.training.student import Student, Trained, block_linears
from pruning.techniques.mathematics.rounding import in_groups, refit, rounded, search_scale

logger = logging.getLogger(__name__)

REFIT = 10
"""Steps between two fits of the scales."""


class Rounded(Student):
    """Trains the linear layers of the blocks behind codes, and all else as any student.

    Layers that `source` has quantised start from its scales, so that nothing changes at the start; others from scales
    that are searched.
    """

    def __init__(self, network: nn.Module, trained: Trained, quantise: Quantise, source: WeightSource) -> None:
        super().__init__(network, trained)
        self._bits, self._group = quantise.bits, quantise.group
        linears = {f"{name}.weight": module for name, module in block_linears(network).items()}
        self._transposed = {name for name, module in linears.items() if not isinstance(module, nn.Linear)}
        self._again: list[str] = []  # quantised already, with other codes
        self._scales = {name: self._start(name, source.scales(name)) for name in linears}
        if self._again:
            what = f"{self._bits} bits in groups of {self._group}, {self._again[0]} for instance"
            logger.warning("%d weights that are quantised otherwise are rounded again, to %s", len(self._again), what)
        self.settle()

    def tensors(self) -> dict[str, Tensor]:
        """Weights and scales."""
        return super().tensors() | {f"scales/{name}": scales for name, scales in self._scales.items()}

    def update(self, step: int) -> None:
        """Fit the scales again after some of the steps."""
        if step % REFIT == 0:
            for name, scales in self._scales.items():
                scales.copy_(refit(self._rows(name), scales, self._bits, self._group))
        super().update(step)

    def weights(self) -> dict[str, Tensor]:
        """Every changed weight, and the scales of those that are quantised, turned as they are."""
        scales = {f"{n}.scales": (s.T if n in self._transposed else s).half() for n, s in self._scales.items()}
        return super().weights() | scales

    def _stored(self, name: str) -> Tensor:
        """Code times scale where the weight is quantised."""
        if name not in self._scales:
            return super()._stored(name)
        weight = rounded(self._rows(name), self._scales[name], self._bits, self._group)
        return weight.T if name in self._transposed else weight

    def _rows(self, name: str) -> Tensor:
        """The weight behind the codes, [outputs, inputs]."""
        weight = self.parameters[name].data
        return weight.T if name in self._transposed else weight

    def _start(self, name: str, own: Tensor | None) -> Tensor:
        """The scales [outputs, groups], float16 in float32, to start from: its `own`, or those that cost least."""
        weight = self._rows(name)
        grouped = in_groups(weight, self._group)
        if own is not None:
            scales = (own.T if name in self._transposed else own).to(weight.device, torch.float32).contiguous()
            fits = scales.shape == grouped.shape[:2]
            if fits and torch.equal(rounded(weight, scales, self._bits, self._group), weight.bfloat16()):
                return scales
            self._again.append(name)
        return search_scale(grouped, torch.ones(self._group, device=weight.device), self._bits)
