"""The interface of a stage: `apply(options, StageModel, StageContext)` returns the next StageModel and a lineage step.

A stage journals its progress in its own folder and resumes from there when it is run again.
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
"""Tokens per sequence of the forward that learns what the blocks return and checks that they can be replayed."""


class StageModel(NamedTuple):
    """A model between two stages: configuration, weights and rewritten files."""

    config: dict[str, Any]
    source: WeightSource
    files: Mapping[str, str] = {}
    """Texts of the base's other files that a stage rewrote, by file name; the rest are copied from the base."""


class StageContext(NamedTuple):
    """What every stage gets: the recipe's inputs, a folder of its own, and the processes that train together."""

    inputs: Inputs
    folder: Path
    team: Team = ALONE

    def blocks(self, model: StageModel) -> Blocks:
        """The blocks of `model`, checked on a few tokens to replay bit for bit; raises ModelRefused."""
        blocks = Blocks(base.skeleton(model.config), model.source)
        blocks.check(self.check_ids)
        return blocks

    @property
    def check_ids(self) -> Tensor:
        """The ids [2, tokens] on which block replay is checked."""
        ids = self.inputs.calibration[0].flatten()[: 2 * CHECKED_TOKENS]
        return ids[: len(ids) // 2 * 2].view(2, -1)

    def sweep(self, blocks: Blocks) -> Sweep:
        """A pass over the calibration ids, journalled in the folder."""
        return Sweep(blocks, self.inputs.calibration[0], self.inputs.recipe.calibration.batch, self.folder)

    def shared_sweep(self, blocks: Blocks) -> Sweep:
        """A pass over this process's share of the calibration ids, with its states in `own_folder`.

        After a kill all processes resume after the last block that each of them finished.
        """
        sweep = Sweep(blocks, self.shared_ids, self.inputs.recipe.calibration.batch, self.own_folder)
        sweep.agreed, sweep.shown = self.team.least, self.team.leads
        return sweep

    @property
    def shared_ids(self) -> Tensor:
        """This process's share of the calibration ids, [sequences, tokens]."""
        return self.team.part(self.inputs.calibration[0])

    @property
    def own_folder(self) -> Path:
        """The folder of what only this process reads: the stage's, unless several share out its sequences."""
        return self.folder if self.team.size == 1 else self.folder / f"{self.team.rank + 1}-of-{self.team.size}"

    def moments(self, blocks: Blocks, powers: tuple[int, ...]) -> Moments:
        """The means E[g^p] of the weights' gradients on the calibration ids; journalled in the subfolder `backward`."""
        return moments(blocks, self.inputs.calibration[0], self.folder / "backward", powers)


def blocks_without_weights(config: dict[str, Any]) -> Blocks:
    """The blocks of a model with this configuration, for their shapes; reading a weight raises."""
    model = base.skeleton(config)
    return Blocks(model, NamesOnly(model))


class NamesOnly:
    """Weight names without weights; reading one raises NotImplementedError."""

    def __init__(self, model: nn.Module) -> None:
        self._names = list(model.state_dict())

    def names(self) -> list[str]:
        """The names of all weights."""
        return self._names

    def tensor(self, name: str) -> Tensor:
        """Raise NotImplementedError."""
        raise NotImplementedError(name)

    def scales(self, name: str) -> None:
        """None: nothing is quantised."""


def total_seconds(notes: list[Note]) -> float:
    """Seconds spent on all blocks, summed over interrupted runs."""
    return round(sum(float(note["seconds"]) for note in notes), 1)
