"""What distillation trains: the kept weights themselves, or LoRA's adapters beside them; norms and biases always.

A weight of a linear layer in a block that is exactly zero at the start is exactly zero in what comes out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import RecipeError
from pruning.model import find_blocks, is_linear
from pruning.stage import Model
from pruning.stages import Distill, LoRA
from pruning.training.network import load


class Student:
    """A network, what of it is trained, and which weights are `pruned` for good."""

    def __init__(
        self, network: nn.Module, parameters: Mapping[str, nn.Parameter], pruned: Mapping[str, Tensor]
    ) -> None:
        self.network = network
        self.parameters = parameters
        """What the optimiser changes, by name."""
        self._pruned = pruned
        for parameter in parameters.values():
            parameter.requires_grad_(True)

    def mask_gradients(self) -> None:
        """Remove the gradients of pruned weights, so that the optimiser's moments stay zero too."""
        for name, pruned in self._pruned.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0)

    def mask_weights(self) -> None:
        """Set pruned weights to exactly zero."""
        for name, pruned in self._pruned.items():
            self.parameters[name].data.masked_fill_(pruned, 0)

    def weights(self) -> dict[str, Tensor]:
        """Every changed weight under the model's own name, as it is stored."""
        return {name: parameter.detach().bfloat16() for name, parameter in self.parameters.items()}


def kept(network: nn.Module, embeddings: bool) -> Student:
    """Trains all of the blocks, vectors outside them, and matrices outside them if `embeddings` are to be."""
    prefix = find_blocks(network)[0] + "."
    named = network.named_parameters()
    parameters = {name: p for name, p in named if embeddings or p.dim() == 1 or name.startswith(prefix)}
    weights = {f"{name}.weight": module.get_parameter("weight") for name, module in block_linears(network).items()}
    pruned = {name: mask for name, weight in weights.items() if (mask := weight.data == 0).any()}
    return Student(network, parameters, pruned)


class Adapted(Student):
    """Trains low-rank adapters of the linear layers; the weights that are stored are the merged ones, masked again.

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685, equation 3.
    """

    def __init__(self, network: nn.Module, lora: LoRA, seed: int) -> None:
        names = list(block_linears(network))
        _adapt(network, names, lora, seed)
        self._layers = {name: network.get_submodule(name) for name in names}
        named = network.named_parameters()
        super().__init__(network, {name: p for name, p in named if p.dim() == 1 or ".lora_" in name}, {})

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Every changed weight under the model's own name, as it is stored: merged, then masked."""
        changed = {name.replace(".base_layer.", "."): p.data for name, p in self.parameters.items() if p.dim() == 1}
        for name, layer in self._layers.items():
            own = layer.get_submodule("base_layer").get_parameter("weight")
            changed[f"{name}.weight"] = (own + _delta(layer)).masked_fill_(own == 0, 0)
        return {name: tensor.bfloat16() for name, tensor in changed.items()}


def build(stage: Distill, model: Model) -> Student:
    """The student that `stage` asks for, from `model`, in float32."""
    network = load(model, torch.float32)
    return Adapted(network, stage.lora, stage.seed) if stage.lora else kept(network, stage.embeddings)


def block_linears(network: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in the blocks of `network` by their names."""
    path, blocks = find_blocks(network)
    return {name: module for name, module in blocks.named_modules(prefix=path) if is_linear(module)}


def _adapt(network: nn.Module, names: list[str], lora: LoRA, seed: int) -> None:
    """Put peft's adapters around the layers `names`; raises RecipeError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise RecipeError("lora needs the package peft: run `pip install 'secateur[lora]'` first") from None
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
