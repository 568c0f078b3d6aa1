"""What every stage of a recipe is given and gives back: a model goes in, and another goes on with a record of the step.

A stage keeps what it has computed in a folder of its own and, run again, goes on from there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import WeightSource
from pruning.passes.gradients import Moments, moments
from pruning.passes.sweep import Note, Sweep
from pruning.stages.inputs import Inputs
from pruning.stages.team import ALONE, Team

CHECKED_TOKENS = 16
"""Tokens of a sequence on which is found out what blocks return, and that they can be replayed."""


class Model(NamedTuple):
    """A model between two stages."""

    config: dict[str, Any]
    source: WeightSource
    files: Mapping[str, str] = {}
    """What the last stage made of the base's other files, by their names; those that it left alone are not here."""


class Place(NamedTuple):
    """Where a stage works: the inputs of the whole recipe, a folder of its own, and the processes that train."""

    inputs: Inputs
    folder: Path
    team: Team = ALONE

    def blocks(self, model: Model) -> Blocks:
        """The blocks of `model`, proved on a few tokens to replay bit for bit; raises ModelRefused."""
        blocks = Blocks(base.skeleton(model.config), model.source)
        blocks.check(self.checked)
        return blocks

    @property
    def checked(self) -> Tensor:
        """The ids [2, tokens] on which the replay of the blocks is proved."""
        ids = self.inputs.calibration[0].flatten()[: 2 * CHECKED_TOKENS]
        return ids[: len(ids) // 2 * 2].view(2, -1)

    def sweep(self, blocks: Blocks) -> Sweep:
        """A pass over the calibration ids that keeps its files in the folder."""
        return Sweep(blocks, self.inputs.calibration[0], self.inputs.recipe.calibration.batch, self.folder)

    def moments(self, blocks: Blocks, powers: tuple[int, ...]) -> Moments:
        """The moments of the weights' gradients on the calibration ids, by a pass backward in a folder of its own."""
        return moments(blocks, self.inputs.calibration[0], self.folder / "backward", powers)


def unloaded(config: dict[str, Any]) -> Blocks:
    """The blocks of a model of this configuration, for their shapes: there are no weights."""
    model = base.skeleton(config)
    return Blocks(model, Nothing(model))


class Nothing:
    """The names of a model's weights, of which none can be had."""

    def __init__(self, model: nn.Module) -> None:
        self._names = list(model.state_dict())

    def names(self) -> list[str]:
        """All names."""
        return self._names

    def tensor(self, name: str) -> Tensor:
        """Not to be called."""
        raise NotImplementedError(name)

    def scales(self, name: str) -> None:
        """None: nothing is quantised."""


def seconds(notes: list[Note]) -> float:
    """The time spent on all blocks, whatever runs it was spread over."""
    return round(sum(float(note["seconds"]) for note in notes), 1)
