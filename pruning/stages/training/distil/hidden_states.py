"""The hidden states after each block of a network, for a loss that compares them with the base's."""

from typing import Any

from torch import Tensor, nn

from pruning.errors import RecipeError
from pruning.model.blocks import find_blocks
from pruning.stages.context import blocks_without_weights


class BlockStates:
    """Records the states [batch, tokens, hidden] after each block during every forward of a network."""

    def __init__(self, network: nn.Module) -> None:
        self._states: list[Tensor] = []
        for block in find_blocks(network)[1]:
            block.register_forward_hook(self._see)

    def take(self) -> list[Tensor]:
        """The states of the forwards since the last call, float32, in the order of blocks."""
        states, self._states = self._states, []
        return [state.float() for state in states]

    def _see(self, _: nn.Module, __: Any, output: Any) -> None:
        self._states.append(output[0] if isinstance(output, tuple) else output)


def refuse_other_shape(config: dict[str, Any], base: dict[str, Any]) -> None:
    """Raise RecipeError unless both configurations have the same number of blocks and the same hidden size."""
    sizes = []
    for one in (config, base):
        blocks = blocks_without_weights(one)
        model: Any = blocks.model
        sizes.append((len(blocks), model.get_input_embeddings().weight.shape[-1]))
    if sizes[0] != sizes[1]:
        raise RecipeError(
            f"states compares the model's {sizes[0][0]} blocks of width {sizes[0][1]} with the base's {sizes[1][0]} of "
            f"width {sizes[1][1]}: leave it out"
        )
