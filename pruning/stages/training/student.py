"""The student of a training run: the stored weights, which compute, and the float32 master weights behind them.

A linear layer's weight in a block that is exactly zero at the start stays exactly zero.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pruning.model.blocks import find_blocks, is_linear
from pruning.model.weights import WeightSource
from pruning.stages.team import Team


class TrainedParameters(NamedTuple):
    """The parameters to train, and masks of the weights that stay zero, both by name."""

    parameters: Mapping[str, nn.Parameter]
    pruned: Mapping[str, Tensor]


class Student:
    """A network that computes with the weights as stored, and float32 master weights that the optimiser changes.

    Gradients are taken at the stored weights and applied to the master weights: Micikevicius et al., Mixed Precision
    Training, https://arxiv.org/abs/1710.03740, section 3.1.
    """

    def __init__(self, network: nn.Module, trained: TrainedParameters) -> None:
        self.network = network
        self._trained, self._pruned = trained
        self.parameters = {
            name: nn.Parameter(held(p.detach()).to(torch.float32, copy=True)) for name, p in self._trained.items()
        }
        """The float32 master weights, by name."""
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters as torch's optimisers take them, with the peak learning rate of each group."""
        return [{"params": list(self.parameters.values()), "lr": learning_rate}]

    def adamw(self, learning_rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        """AdamW without weight decay over the parameters."""
        return torch.optim.AdamW(self.groups(learning_rate), betas=betas, weight_decay=0.0, fused=True)

    def take_gradients(self) -> None:
        """Move the network's gradients to `parameters`, zeroed for pruned weights, so their moments stay zero too."""
        for name, parameter in self.parameters.items():
            gradient = self._trained[name].grad
            self._trained[name].grad = None
            if gradient is None:
                parameter.grad = None
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(held(gradient))
            if name in self._pruned:
                parameter.grad.mul_(~self._pruned[name])  # six times faster than masked_fill_

    def combine_gradients(self, team: Team, limit: float) -> None:
        """Average the gradients over `team`, and scale them down to the norm `limit`."""
        team.average(p.grad for p in self.parameters.values() if p.grad is not None)
        nn.utils.clip_grad_norm_(self.parameters.values(), limit)

    def settle(self) -> None:
        """Zero the pruned master weights, and copy all to the network as they would be stored."""
        for name, pruned in self._pruned.items():
            self.parameters[name].data.mul_(~pruned)
        for name in self.parameters:
            self.put({name: self._stored(name)})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that later steps depend on, by "kind/name"; to resume, write to them and call `settle`."""
        return {f"weight/{name}": parameter.data for name, parameter in self.parameters.items()}

    def update(self, step: int) -> None:
        """Finish `step` after the optimiser has changed `parameters`: zero pruned weights and refresh the network."""
        self.settle()

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the network's weights with `weights`, by name; the master weights stay as they are."""
        for name, weight in weights.items():
            held(self._trained[name].detach()).copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        """All changed weights by the model's own names, as they are stored."""
        return {name: self._stored(name) for name in self.parameters}

    def collected(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the first process writes of `tensors`, which are this process's `weights` or optimiser state: all."""
        return tensors

    def own_part(self, kept: WeightSource) -> WeightSource:
        """What this process holds of `kept`, the tensors of an optimiser's state in a file: all."""
        return kept

    def scored_network(self) -> nn.Module:
        """A network with exactly the weights that would be stored."""
        return self.network

    def _stored(self, name: str) -> Tensor:
        """The parameter `name` as it would be stored: bfloat16."""
        return self.parameters[name].detach().bfloat16()


def select_trained(network: nn.Module, embeddings: bool, zeros: WeightSource | None = None) -> TrainedParameters:
    """All parameters of the blocks, all vectors outside them, and with `embeddings` the matrices outside them.

    Zeros of the blocks' linear layers stay zero; with `zeros`, only where that source is zero too.
    """
    prefix = find_blocks(network)[0] + "."
    named = network.named_parameters()
    parameters = {name: p for name, p in named if embeddings or p.dim() == 1 or name.startswith(prefix)}
    pruned = {}
    for layer, module in block_linears(network).items():
        mask = held(module.get_parameter("weight").detach()) == 0
        if zeros:
            mask &= zeros.tensor(f"{layer}.weight").to(mask.device) == 0
        if mask.any():
            pruned[f"{layer}.weight"] = mask
    return TrainedParameters(parameters, pruned)


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a network's parameter or gradient: its rows of a sharded one, else all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def block_linears(network: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in the blocks of `network`, by name."""
    path, blocks = find_blocks(network)
    return {name: module for name, module in blocks.named_modules(prefix=path) if is_linear(module)}
