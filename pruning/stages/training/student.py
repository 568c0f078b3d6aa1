"""What training moves: the kept weights themselves, or LoRA's adapters beside them; norms and biases always.

A weight of a linear layer in a block that is exactly zero at the start is exactly zero in what comes out.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import RecipeError
from pruning.model.blocks import find_blocks, is_linear
from pruning.model.weights import WeightSource
from pruning.recipe.options import LoRA


class Trained(NamedTuple):
    """What of a network is trained, by name, and which weights of it stay exactly zero."""

    parameters: Mapping[str, nn.Parameter]
    pruned: Mapping[str, Tensor]


class Student:
    """A network whose weights are those that would be stored, and float32 weights behind the ones that are trained.

    Gradients are taken at the stored weights and move those behind them: Micikevicius et al., Mixed Precision Training,
    https://arxiv.org/abs/1710.03740, section 3.1.
    """

    def __init__(self, network: nn.Module, trained: Trained) -> None:
        self.network = network
        self._trained, self._pruned = trained
        self.parameters = {
            name: nn.Parameter(p.detach().to(torch.float32, copy=True)) for name, p in self._trained.items()
        }
        """What the optimiser changes, by name."""
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters as torch's optimisers take them, with the highest rate of each group."""
        return [{"params": list(self.parameters.values()), "lr": learning_rate}]

    def take_gradients(self) -> None:
        """Hand the gradients on to `parameters`; without those of pruned weights, so that moments stay zero too."""
        for name, parameter in self.parameters.items():
            gradient = self._trained[name].grad
            self._trained[name].grad = None
            parameter.grad = None if gradient is None else gradient.float()
            if parameter.grad is not None and name in self._pruned:
                parameter.grad.masked_fill_(self._pruned[name], 0)

    def settle(self) -> None:
        """Set pruned weights to exactly zero, and give the network what would be stored."""
        for name, pruned in self._pruned.items():
            self.parameters[name].data.masked_fill_(pruned, 0)
        for name in self.parameters:
            self.put({name: self._stored(name)})

    def tensors(self) -> dict[str, Tensor]:
        """All that later steps depend on, by kind and name; writing to them and settling goes on from there."""
        return {f"weight/{name}": parameter.data for name, parameter in self.parameters.items()}

    def update(self, step: int) -> None:
        """Take over what the optimiser's `step` has made of `parameters`."""
        self.settle()

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network `weights`, by name."""
        for name, weight in weights.items():
            self._trained[name].data.copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        """Every changed weight under the model's own name, as it is stored."""
        return {name: self._stored(name) for name in self.parameters}

    def judged(self) -> nn.Module:
        """A network with the very weights that would be stored."""
        return self.network

    def _stored(self, name: str) -> Tensor:
        """What the network has of one of `parameters`."""
        return self.parameters[name].detach().bfloat16()


def kept(network: nn.Module, embeddings: bool, zeros: WeightSource | None = None) -> Trained:
    """All of the blocks, vectors outside them, and matrices outside them if `embeddings` are to be trained.

    Zeros of the linear layers in the blocks stay; with `zeros` only those that are zero there too.
    """
    prefix = find_blocks(network)[0] + "."
    named = network.named_parameters()
    parameters = {name: p for name, p in named if embeddings or p.dim() == 1 or name.startswith(prefix)}
    pruned = {}
    for layer, module in block_linears(network).items():
        mask = module.get_parameter("weight").data == 0
        if zeros:
            mask &= zeros.tensor(f"{layer}.weight").to(mask.device) == 0
        if mask.any():
            pruned[f"{layer}.weight"] = mask
    return Trained(parameters, pruned)


class Adapted(Student):
    """Trains low-rank adapters of the linear layers; the weights that are stored are the merged ones, masked again.

    `merged` is the same network once more, which is judged with these.

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685, equation 3.
    """

    def __init__(self, network: nn.Module, merged: nn.Module, lora: LoRA, seed: int) -> None:
        self._merged = merged
        names = list(block_linears(network))
        _adapt(network, names, lora, seed)
        self._layers = {name: network.get_submodule(name) for name in names}
        named = network.named_parameters()
        super().__init__(network, Trained({name: p for name, p in named if p.dim() == 1 or ".lora_" in name}, {}))

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Every changed weight under the model's own name, as it is stored: merged, then masked."""
        changed = {name.replace(".base_layer.", "."): p.data for name, p in self.parameters.items() if p.dim() == 1}
        for name, layer in self._layers.items():
            own = layer.get_submodule("base_layer").get_parameter("weight").float()
            changed[f"{name}.weight"] = (own + _delta(layer)).masked_fill_(own == 0, 0)
        return {name: tensor.bfloat16() for name, tensor in changed.items()}

    def judged(self) -> nn.Module:
        """The merged network."""
        for name, weight in self.weights().items():
            self._merged.get_parameter(name).data.copy_(weight)
        return self._merged

    def _stored(self, name: str) -> Tensor:
        """Adapters are not stored, so they are not rounded."""
        parameter = self.parameters[name].detach()
        return parameter.bfloat16() if parameter.dim() == 1 else parameter


def block_linears(network: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in the blocks of `network` by their names."""
    path, blocks = find_blocks(network)
    return {name: module for name, module in blocks.named_modules(prefix=path) if is_linear(module)}


def adapters() -> ModuleType:
    """The package peft; raises RecipeError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise RecipeError("lora needs the package peft: run `pip install 'secateur[lora]'` first") from None
    return peft


def _adapt(network: nn.Module, names: list[str], lora: LoRA, seed: int) -> None:
    """Put peft's adapters around the layers `names`."""
    peft = adapters()
    transposed = not isinstance(network.get_submodule(names[0]), nn.Linear)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=names, fan_in_fan_out=transposed, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, network)


def _delta(layer: Any) -> Tensor:
    """What an adapter adds to its layer's weight, in that weight's own shape."""
    delta: Tensor = layer.get_delta_weight("default")
    return delta
