"""The student of quantisation-aware distillation: computes with code * scale, trains the master weights behind them.

Gradients pass the rounding unchanged (straight-through estimator): Bengio et al., Estimating or Propagating Gradients
Through Stochastic Neurons, https://arxiv.org/abs/1308.3432, section 4. Scales are not trained but refitted to the
master weights every few steps.
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from pruning.model.weights import WeightSource
from pruning.recipe.training import Quantise
from pruning.stages.training.distil.kept import kept_codes
from pruning.stages.training.student import Student, TrainedParameters, block_linears
from pruning.techniques.mathematics.rounding import in_groups, refit_scales, round_with_scales, search

logger = logging.getLogger(__name__)

REFIT = 10
"""Steps between two refits of the scales."""


class QuantisedStudent(Student):
    """Trains the blocks' linear layers behind codes, and everything else as a plain student.

    Layers already quantised in `source` start with its scales, which changes nothing; others with searched scales.
    "kept" keeps each layer's own codes, and raises ModelRefused for a layer without any.
    """

    def __init__(
        self, network: nn.Module, trained: TrainedParameters, quantise: Quantise | Literal["kept"], source: WeightSource
    ) -> None:
        super().__init__(network, trained)
        linears = {f"{name}.weight": module for name, module in block_linears(network).items()}
        self._transposed = {name for name, module in linears.items() if not isinstance(module, nn.Linear)}
        self._codes = {name: kept_codes(name, source) if quantise == "kept" else quantise for name in linears}
        self._again: list[str] = []  # already quantised, with other codes
        self._scales = {name: self._start(name, source.scales(name)) for name in linears}
        if self._again:
            codes = self._codes[self._again[0]]
            what = f"{codes.bits} bits in groups of {codes.group}, such as {self._again[0]}"
            logger.warning("%d weights quantised to another format are rounded again, to %s", len(self._again), what)
        self.settle()

    def tensors(self) -> dict[str, Tensor]:
        """Master weights and scales."""
        return super().tensors() | {f"scales/{name}": scales for name, scales in self._scales.items()}

    def update(self, step: int) -> None:
        """Finish `step` as `Student.update`, after refitting the scales every `REFIT` steps."""
        if step % REFIT == 0:
            for name, scales in self._scales.items():
                codes = self._codes[name]
                scales.copy_(refit_scales(self._rows(name), scales, codes.bits, codes.group))
        super().update(step)

    def weights(self) -> dict[str, Tensor]:
        """All changed weights as stored, and the scales of the quantised ones, transposed as the weights are."""
        scales = {f"{name}.scales": self._turned(name, grid).half() for name, grid in self._scales.items()}
        return super().weights() | scales

    def _turned(self, name: str, grid: Tensor) -> Tensor:
        """A grid between the order of rows and that of the weight."""
        return grid.transpose(0, 1) if name in self._transposed else grid

    def _stored(self, name: str) -> Tensor:
        """code * scale for a quantised weight, bfloat16."""
        if name not in self._scales:
            return super()._stored(name)
        codes = self._codes[name]
        weight = round_with_scales(self._rows(name), self._scales[name], codes.bits, codes.group)
        return weight.T if name in self._transposed else weight

    def _rows(self, name: str) -> Tensor:
        """The master weight [outputs, inputs] behind the codes."""
        weight = self.parameters[name].data
        return weight.T if name in self._transposed else weight

    def _start(self, name: str, own: Tensor | None) -> Tensor:
        """The initial grids [outputs, groups(, 2)]: the model's `own` if they give the weight, else searched ones."""
        weight, codes = self._rows(name), self._codes[name]
        asymmetric = codes.scheme == "asymmetric"
        grouped = in_groups(weight, codes.group)
        if own is not None:
            scales = self._turned(name, own).to(weight.device, torch.float32).contiguous()
            fits = scales.shape == (*grouped.shape[:2], *(2,) * asymmetric)
            if fits and torch.equal(round_with_scales(weight, scales, codes.bits, codes.group), weight.bfloat16()):
                return scales
            self._again.append(name)
        ones = torch.ones(codes.group, device=weight.device)
        return search(grouped, ones, codes.bits, asymmetric=asymmetric)
