"""The student of shearing: all weights, masks for layers, hidden dimensions, KV groups and FFN units, and multipliers.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1. Masks apply where the residual stream is
written: to embeddings, to outputs of rowwise layers (hidden dimensions, layers) and to their inputs (KV groups,
feed-forward units). The official code also masks the outputs of norms; here an unwritten dimension is zero, and a norm
averages squares over the other dimensions alone, so the cut model equals the masked one.
"""

from collections.abc import Callable, Iterable, Mapping
from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.weights import InMemory
from pruning.stages.context import StageModel
from pruning.stages.structured.shape import Structure, TargetShape
from pruning.stages.structured.surgery import outputs_axis
from pruning.stages.training.network import CPU, load
from pruning.stages.training.shear.hard_concrete import decide, penalty, probability, sample, target_at
from pruning.stages.training.student import Student, TrainedParameters, select_trained

MasksByKind = Mapping[str, Tensor]
"""Masks by kind: layers [layers], hidden [hidden], kv_groups [layers, groups], ffn [layers, units]."""

START, SPREAD = 5.0, 0.01
"""Mean and deviation of the initial log alpha, as in the official code."""
LIMIT = log(1e2)
"""The largest |log alpha|."""
EDGE = 1e-6
"""Least distance of the uniform numbers from 0 and 1."""
MASK, MULTIPLIERS = "mask", "multipliers"
"""Prefixes of the student's parameter names."""


class Masks:
    """Log alpha and two Lagrange multipliers for each kind in the target of `shape`."""

    def __init__(self, shape: TargetShape, seed: int, device: torch.device = CPU) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._seed, self._shape = seed, shape
        self.log_alpha: dict[str, nn.Parameter] = {}
        self.multipliers: dict[str, nn.Parameter] = {}
        for kind in shape.target:
            noise = torch.randn(shape.structure.per_layer(kind), generator=generator)
            self.log_alpha[kind] = nn.Parameter((START + SPREAD * noise).to(device))
            self.multipliers[kind] = nn.Parameter(torch.zeros(2, device=device))

    def sample(self, step: int) -> MasksByKind:
        """Random masks of one step, determined by seed and step."""
        generator = torch.Generator().manual_seed(Random(f"{self._seed}, {step}").getrandbits(63))
        uniform = {kind: torch.rand(value.shape, generator=generator) for kind, value in self.log_alpha.items()}
        return {
            kind: sample(value, uniform[kind].clamp(EDGE, 1 - EDGE).to(value.device))
            for kind, value in self.log_alpha.items()
        }

    @torch.no_grad()
    def decide(self) -> MasksByKind:
        """Deterministic masks with exactly the target's number of non-zeros, in every layer."""
        return decided(self._shape, self.log_alpha)

    def penalty(self, step: int, warmup: int) -> Tensor:
        """The sum over kinds of the Lagrangian on the fraction of units that remain, averaged over layers."""
        total = torch.zeros(())
        for kind, value in self.log_alpha.items():
            target = target_at(step, warmup, 1.0, self._shape.target[kind] / self._shape.structure.sizes[kind])
            linear, quadratic = self.multipliers[kind]
            total = total + penalty(probability(value).mean(dim=-1), target, linear, quadratic).mean()
        return total


def decided(shape: TargetShape, log_alpha: Mapping[str, Tensor]) -> MasksByKind:
    """Deterministic masks from `log_alpha` by kind, with exactly the target's number of non-zeros in every layer."""
    result = {}
    for kind, value in log_alpha.items():
        rows = [decide(row, shape.target[kind]) for row in value.view(-1, value.shape[-1])]
        result[kind] = torch.stack(rows).view(value.shape)
    return result


class MaskedStudent(Student):
    """A network with masks; pruned weights stay exactly zero, and multipliers ascend where all else descends.

    The stored weights have the masks folded in and the target's shape.
    """

    def __init__(self, network: nn.Module, shape: TargetShape, masks: Masks, mask_learning_rate: float) -> None:
        whole = select_trained(network, embeddings=True)
        self._shape, self._masks, self._mask_learning_rate = shape, masks, mask_learning_rate
        self._whole = whole.parameters
        named = {f"{MASK} {kind}": value for kind, value in masks.log_alpha.items()}
        named |= {f"{MULTIPLIERS} {kind}": value for kind, value in masks.multipliers.items()}
        super().__init__(network, TrainedParameters({**whole.parameters, **named}, whole.pruned))

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Weights, masks and multipliers, with their learning rates."""

        def group(names: Iterable[str], rate: float) -> dict[str, Any]:
            return {"params": [self.parameters[name] for name in names], "lr": rate}

        masks, multipliers = ([f"{what} {kind}" for kind in self._shape.target] for what in (MASK, MULTIPLIERS))
        rate = self._mask_learning_rate
        return [group(self._whole, learning_rate), group(masks, rate), group(multipliers, rate) | {"maximize": True}]

    def settle(self) -> None:
        """As `Student.settle`, and clamp log alpha to its limits."""
        for kind in self._shape.target:
            self.parameters[f"{MASK} {kind}"].data.clamp_(-LIMIT, LIMIT)
        super().settle()

    def cut(self) -> tuple[StageModel, tuple[int, ...]]:
        """The cut model, as it is stored, and the removed blocks."""
        weights = {name: self.parameters[name].detach() for name in self._whole}
        left, removed = cut_by(self._masks.decide(), self._shape, self.network, weights)
        tensors = {name: left.source.tensor(name).bfloat16().cpu() for name in left.source.names()}
        return StageModel(left.config, InMemory(tensors)), removed

    def weights(self) -> dict[str, Tensor]:
        """All weights of the cut model."""
        model, _ = self.cut()
        return {name: model.source.tensor(name) for name in model.source.names()}

    def scored_network(self) -> nn.Module:
        """The cut model in memory."""
        first = next(self.network.parameters())
        return load(self.cut()[0], first.dtype, first.device)

    def _stored(self, name: str) -> Tensor:
        """The parameter `name`: model weights as stored; masks and multipliers, which are not stored, in float32."""
        return super()._stored(name) if name in self._whole else self.parameters[name].detach()


class MaskScales(NamedTuple):
    """Factors of modules' inputs and outputs, by module name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def mask_scales(structure: Structure, masks: MasksByKind) -> MaskScales:
    """The factors that apply `masks`."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for index, prefix in structure.blocks():
        for kind, group in structure.groups.items():
            name = prefix + group.rowwise
            if kind in masks:
                inputs[name] = masks[kind][index].repeat_interleave(structure.widths[group.rowwise] // group.units)
            if "layers" in masks:
                outputs[name] = masks["layers"][index]
            if "hidden" in masks:
                outputs[name] = masks["hidden"] * outputs.get(name, 1.0)
    if "hidden" in masks:
        outputs |= dict.fromkeys(structure.embeddings, masks["hidden"])
        if structure.tied:  # folding scales the shared weight once, so masking scales the head's input too
            inputs[structure.head] = masks["hidden"]
    return MaskScales(inputs, outputs)


class MaskHooks:
    """Applies masks in the forward of `network` by hooks; before `use` the network computes as if it had none."""

    def __init__(self, network: nn.Module, structure: Structure) -> None:
        self._structure = structure
        self._scales = MaskScales({}, {})
        self._stretch = 1.0
        rowwise = [prefix + group.rowwise for _, prefix in structure.blocks() for group in structure.groups.values()]
        for name in (*rowwise, structure.head):
            network.get_submodule(name).register_forward_pre_hook(self._scaler(name))
        for name in (*rowwise, *structure.embeddings):
            network.get_submodule(name).register_forward_hook(self._output_scaler(name))
        for name in structure.norms:
            network.get_submodule(name).register_forward_pre_hook(lambda _, args: _scaled(args, self._stretch))
            network.get_submodule(name).register_forward_hook(lambda _, args, output: output / self._stretch)

    def use(self, masks: MasksByKind) -> None:
        """Apply `masks` in every later forward."""
        self._scales = mask_scales(self._structure, masks)
        hidden = masks.get("hidden")
        # (x s) / root(mean((x s)^2)) / s, with s^2 = all / remaining dimensions, is the norm over the remaining ones
        self._stretch = 1.0 if hidden is None else (len(hidden) / max(int(torch.count_nonzero(hidden)), 1)) ** 0.5

    def _scaler(self, name: str) -> Callable[..., Any]:
        def scale(_: nn.Module, args: tuple[Any, ...]) -> Any:
            factor = self._scales.inputs.get(name)
            return None if factor is None else _scaled(args, factor)

        return scale

    def _output_scaler(self, name: str) -> Callable[..., Any]:
        def scale(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
            factor = self._scales.outputs.get(name)
            return None if factor is None else output * factor

        return scale


def _scaled(args: tuple[Any, ...], factor: Tensor | float) -> tuple[Any, ...]:
    """The arguments of a call with the first one multiplied by `factor`; raises ModelRefused for a keyword call."""
    if not args:
        raise ModelRefused("its linear layers or norms are called by keyword, so their inputs cannot be masked")
    return (args[0] * factor, *args[1:])


@torch.no_grad()
def cut_by(
    masks: MasksByKind, shape: TargetShape, network: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[StageModel, tuple[int, ...]]:
    """Fold `masks` into `weights`, the parameters of `network`, and cut; returns the model and removed blocks."""
    stay = {kind: mask.nonzero()[:, -1].view(*mask.shape[:-1], -1) for kind, mask in masks.items()}
    return shape.cut(network, folded(network, weights, mask_scales(shape.structure, masks)), stay)


def folded(network: nn.Module, weights: Mapping[str, Tensor], by: MaskScales) -> dict[str, Tensor]:
    """`weights` of `network` with the scales `by` multiplied in: equal to the masked network without hooks."""
    tensors = dict(weights)
    inputs, outputs = by
    for path in dict.fromkeys((*outputs, *inputs)):
        module = network.get_submodule(path)
        for leaf in module._parameters:
            name = f"{path}.{leaf}"
            if name not in tensors:
                continue
            axis = outputs_axis(module, tensors[name])
            if path in outputs:
                tensors[name] = tensors[name] * _along(outputs[path], tensors[name], axis)
            if path in inputs and tensors[name].dim() == 2:
                tensors[name] = tensors[name] * _along(inputs[path], tensors[name], 1 - axis)
    return tensors


def _along(factor: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """`factor`, a scalar or a vector over `axis`, broadcastable against `tensor`."""
    if factor.dim() == 0:
        return factor
    return factor.view([-1 if dimension == axis else 1 for dimension in range(tensor.dim())])
