"""What shearing trains: all weights, a mask for each layer, hidden dimension, KV group and feed-forward unit, and the
multipliers that hold the masks to the target shape.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1. Masks stand where the residual stream is
written: on embeddings, on what rowwise layers put out (hidden dimensions, layers) and on what they take in (KV groups,
feed-forward units). The official code masks what norms put out as well; here a dimension that nothing writes is zero,
and a norm takes its mean of squares over the others alone, so that the cut model equals the masked one.
"""

from collections.abc import Callable, Iterable, Mapping
from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.weights import InMemory
from pruning.stages.context import Model
from pruning.stages.structured.body import Body, Shape
from pruning.stages.structured.surgery import outputs_axis
from pruning.stages.training.network import CPU, load
from pruning.stages.training.shear.masks import decide, penalty, probability, sample, target_at
from pruning.stages.training.student import Student, Trained, kept

Chosen = Mapping[str, Tensor]
"""Masks by kind: layers [layers], hidden [hidden], kv_groups [layers, groups], ffn [layers, units]."""

START, SPREAD = 5.0, 0.01
"""Mean and deviation of log alpha at the start, as in the official code."""
LIMIT = log(1e2)
"""The largest |log alpha|."""
EDGE = 1e-6
"""How far the uniform numbers keep from 0 and 1."""
MASK, MULTIPLIERS = "mask", "multipliers"
"""What the names begin with that a student gives them."""


class Masks:
    """Log alpha and two multipliers for each kind in the target of `shape`."""

    def __init__(self, shape: Shape, seed: int, device: torch.device = CPU) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._seed, self._shape = seed, shape
        self.log_alpha: dict[str, nn.Parameter] = {}
        self.multipliers: dict[str, nn.Parameter] = {}
        for kind in shape.target:
            noise = torch.randn(shape.body.per_layer(kind), generator=generator)
            self.log_alpha[kind] = nn.Parameter((START + SPREAD * noise).to(device))
            self.multipliers[kind] = nn.Parameter(torch.zeros(2, device=device))

    def sample(self, step: int) -> Chosen:
        """The masks of one step, at random by the seed and the step alone."""
        generator = torch.Generator().manual_seed(Random(f"{self._seed}, {step}").getrandbits(63))
        uniform = {kind: torch.rand(value.shape, generator=generator) for kind, value in self.log_alpha.items()}
        return {
            kind: sample(value, uniform[kind].clamp(EDGE, 1 - EDGE).to(value.device))
            for kind, value in self.log_alpha.items()
        }

    @torch.no_grad()
    def decide(self) -> Chosen:
        """The masks without chance, of which exactly the target is not 0, in every layer."""
        return decided(self._shape, self.log_alpha)

    def penalty(self, step: int, warmup: int) -> Tensor:
        """The Lagrangian of all constraints, on fractions of the units that stay; the mean over layers of each."""
        total = torch.zeros(())
        for kind, value in self.log_alpha.items():
            target = target_at(step, warmup, 1.0, self._shape.target[kind] / self._shape.body.sizes[kind])
            linear, quadratic = self.multipliers[kind]
            total = total + penalty(probability(value).mean(dim=-1), target, linear, quadratic).mean()
        return total


def decided(shape: Shape, log_alpha: Mapping[str, Tensor]) -> Chosen:
    """The masks without chance by `log_alpha` of each kind, of which exactly the target is not 0, in every layer."""
    result = {}
    for kind, value in log_alpha.items():
        rows = [decide(row, shape.target[kind]) for row in value.view(-1, value.shape[-1])]
        result[kind] = torch.stack(rows).view(value.shape)
    return result


class Sheared(Student):
    """A network with masks; pruned weights stay exactly zero, and the multipliers go up where all else goes down.

    The weights that are stored have the masks in them and the target's shape.
    """

    def __init__(self, network: nn.Module, shape: Shape, masks: Masks, mask_learning_rate: float) -> None:
        whole = kept(network, embeddings=True)
        self._shape, self._masks, self._mask_learning_rate = shape, masks, mask_learning_rate
        self._whole = whole.parameters
        named = {f"{MASK} {kind}": value for kind, value in masks.log_alpha.items()}
        named |= {f"{MULTIPLIERS} {kind}": value for kind, value in masks.multipliers.items()}
        super().__init__(network, Trained({**whole.parameters, **named}, whole.pruned))

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Weights, masks and multipliers."""

        def group(names: Iterable[str], rate: float) -> dict[str, Any]:
            return {"params": [self.parameters[name] for name in names], "lr": rate}

        masks, multipliers = ([f"{what} {kind}" for kind in self._shape.target] for what in (MASK, MULTIPLIERS))
        rate = self._mask_learning_rate
        return [group(self._whole, learning_rate), group(masks, rate), group(multipliers, rate) | {"maximize": True}]

    def settle(self) -> None:
        """Keep the masks within their limits as well."""
        for kind in self._shape.target:
            self.parameters[f"{MASK} {kind}"].data.clamp_(-LIMIT, LIMIT)
        super().settle()

    def cut(self) -> tuple[Model, tuple[int, ...]]:
        """The model that is left, as it is stored, and the blocks that are taken out."""
        weights = {name: self.parameters[name].detach() for name in self._whole}
        left, removed = cut_by(self._masks.decide(), self._shape, self.network, weights)
        tensors = {name: left.source.tensor(name).bfloat16().cpu() for name in left.source.names()}
        return Model(left.config, InMemory(tensors)), removed

    def weights(self) -> dict[str, Tensor]:
        """All weights of the model that is left."""
        model, _ = self.cut()
        return {name: model.source.tensor(name) for name in model.source.names()}

    def judged(self) -> nn.Module:
        """The model that is left."""
        first = next(self.network.parameters())
        return load(self.cut()[0], first.dtype, first.device)

    def _stored(self, name: str) -> Tensor:
        """Masks and multipliers are not stored, so they are not rounded."""
        return super()._stored(name) if name in self._whole else self.parameters[name].detach()


class Scales(NamedTuple):
    """What modules' inputs and outputs are multiplied by, by the modules' names."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def scales(body: Body, masks: Chosen) -> Scales:
    """What `masks` come to."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for index, prefix in body.blocks():
        for kind, group in body.groups.items():
            name = prefix + group.rowwise
            if kind in masks:
                inputs[name] = masks[kind][index].repeat_interleave(body.widths[group.rowwise] // group.units)
            if "layers" in masks:
                outputs[name] = masks["layers"][index]
            if "hidden" in masks:
                outputs[name] = masks["hidden"] * outputs.get(name, 1.0)
    if "hidden" in masks:
        outputs |= dict.fromkeys(body.embeddings, masks["hidden"])
        if body.tied:  # the head reads through the very weight that the mask is folded into
            inputs[body.head] = masks["hidden"]
    return Scales(inputs, outputs)


class Hooks:
    """Masks in the forward of `network`, without a change to its code; with no masks it is the model itself."""

    def __init__(self, network: nn.Module, body: Body) -> None:
        self._body = body
        self._scales = Scales({}, {})
        self._stretch = 1.0
        rowwise = [prefix + group.rowwise for _, prefix in body.blocks() for group in body.groups.values()]
        for name in (*rowwise, body.head):
            network.get_submodule(name).register_forward_pre_hook(self._scaler(name))
        for name in (*rowwise, *body.embeddings):
            network.get_submodule(name).register_forward_hook(self._output_scaler(name))
        for name in body.norms:
            network.get_submodule(name).register_forward_pre_hook(lambda _, args: _scaled(args, self._stretch))
            network.get_submodule(name).register_forward_hook(lambda _, args, output: output / self._stretch)

    def use(self, masks: Chosen) -> None:
        """Mask every forward from now on."""
        self._scales = scales(self._body, masks)
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
    """The arguments of a call with the first one multiplied."""
    if not args:
        raise ModelRefused("its linear layers or norms are called by keyword, so that their inputs cannot be masked")
    return (args[0] * factor, *args[1:])


@torch.no_grad()
def cut_by(
    masks: Chosen, shape: Shape, network: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[Model, tuple[int, ...]]:
    """What `masks` leave of `weights`, those of `network` by name, and the blocks that are taken out."""
    stay = {kind: mask.nonzero()[:, -1].view(*mask.shape[:-1], -1) for kind, mask in masks.items()}
    return shape.cut(network, folded(network, weights, scales(shape.body, masks)), stay)


def folded(network: nn.Module, weights: Mapping[str, Tensor], by: Scales) -> dict[str, Tensor]:
    """`weights`, those of `network` by name, with scales multiplied into them: the same shapes, but no hooks needed."""
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
    """`factor`, a number or a vector over `axis` of `tensor`, in a shape that multiplies it."""
    if factor.dim() == 0:
        return factor
    return factor.view([-1 if dimension == axis else 1 for dimension in range(tensor.dim())])
