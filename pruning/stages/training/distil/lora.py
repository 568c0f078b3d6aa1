"""The student of distillation with LoRA: low-rank adapters on frozen weights, merged to score and store them.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685, equation 3.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import RecipeError
from pruning.recipe.training import LoRA
from pruning.stages.training.student import Student, TrainedParameters, block_linears


class LoRAStudent(Student):
    """Trains adapters of the linear layers; stored weights are merged, and zero wherever the base weight is zero.

    `merged` is a second copy of the network, which holds the merged weights while they are scored.
    """

    def __init__(self, network: nn.Module, merged: nn.Module, lora: LoRA, seed: int) -> None:
        self._merged = merged
        names = list(block_linears(network))
        _adapt(network, names, lora, seed)
        self._layers = {name: network.get_submodule(name) for name in names}
        named = network.named_parameters()
        super().__init__(
            network, TrainedParameters({name: p for name, p in named if p.dim() == 1 or ".lora_" in name}, {})
        )

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """All changed weights by the model's own names, as stored: merged, then masked."""
        changed = {name.replace(".base_layer.", "."): p.data for name, p in self.parameters.items() if p.dim() == 1}
        for name, layer in self._layers.items():
            own = layer.get_submodule("base_layer").get_parameter("weight").float()
            changed[f"{name}.weight"] = (own + _delta(layer)).masked_fill_(own == 0, 0)
        return {name: tensor.bfloat16() for name, tensor in changed.items()}

    def scored_network(self) -> nn.Module:
        """The network with merged weights."""
        for name, weight in self.weights().items():
            self._merged.get_parameter(name).data.copy_(weight)
        return self._merged

    def _stored(self, name: str) -> Tensor:
        """The parameter `name`: vectors in bfloat16, as stored; adapters, which are never stored, in float32."""
        parameter = self.parameters[name].detach()
        return parameter.bfloat16() if parameter.dim() == 1 else parameter


def adapters() -> ModuleType:
    """The package peft; raises RecipeError if it is not installed."""
    try:
        import peft
    except ImportError:
        raise RecipeError("lora needs the package peft: run `pip install 'secateur[lora]'` first") from None
    return peft


def _adapt(network: nn.Module, names: list[str], lora: LoRA, seed: int) -> None:
    """Wrap the layers `names` in peft's adapters."""
    peft = adapters()
    transposed = not isinstance(network.get_submodule(names[0]), nn.Linear)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=names, fan_in_fan_out=transposed, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, network)


def _delta(layer: Any) -> Tensor:
    """The adapter's contribution to its layer's weight, in that weight's shape."""
    delta: Tensor = layer.get_delta_weight("default")
    return delta
