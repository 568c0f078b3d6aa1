"""Prunes every block to every level, and measures the divergence of an assignment of levels from the dense model.

One pass over dense states prunes each block to all levels. Assignments then run block by block, with one block in
memory; those with a common prefix share its states.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn

from pruning.model.blocks import Blocks, weight_of
from pruning.model.weights import Shards, write_file
from pruning.passes.gradients import Moments
from pruning.passes.observation import observe
from pruning.passes.sweep import BlockView, Note
from pruning.stages.block_weights import naming_weight
from pruning.stages.layerwise.allocation.evolution import Assignment
from pruning.stages.layerwise.prune_block import prune_weight
from pruning.techniques.technique import Technique

DENSE = -1
"""The pseudo-level of an unpruned block."""


def level_file(folder: Path, level: int, index: int) -> Path:
    """The file of the weights of block `index` at `level`."""
    return folder / f"level-{level:02}-block-{index:04}.safetensors"


class PruneLevels:
    """A visit that prunes one block with each of `techniques`, saves each result, and passes on the dense states."""

    def __init__(self, techniques: Sequence[Technique], folder: Path, moments: Moments | None) -> None:
        self._techniques = techniques
        self.folder = folder
        self._moments = moments
        self._needs = techniques[0].needs
        self.runs = 2 if self._needs else 0
        """Forwards of each block per batch."""

    def __call__(self, view: BlockView) -> Note:
        """Observe once, prune and save at each level, and restore the dense weights; notes the seconds."""
        start = monotonic()
        linears = view.linears
        observed = observe(view, self._needs)
        dense = {name: weight_of(linear).clone() for name, linear in linears.items()}
        for level, technique in enumerate(self._techniques):
            for name, linear in linears.items():
                moments = self._moments.of(name, linear) if self._moments else {}
                weight_of(linear).copy_(dense[name])
                with naming_weight(name):
                    prune_weight(weight_of(linear), technique, observed[name].with_gradients(moments))
            weights = {name: linear.get_parameter("weight").data.bfloat16() for name, linear in linears.items()}
            write_file(level_file(self.folder, level, view.index), weights)
        for name, linear in linears.items():
            weight_of(linear).copy_(dense[name])
        if self.runs:
            view.advance()
        return {"seconds": monotonic() - start}


class AssignmentDivergence:
    """Mean KL(dense || assignment) of the next-token distributions over the tokens of some of `ids`, in nats.

    Memory: one block, and the states of the measured tokens for each distinct prefix of the assignments.
    """

    def __init__(self, blocks: Blocks, ids: Tensor, folder: Path) -> None:
        self._blocks = blocks
        self._ids = ids
        self._folder = folder
        self._call = blocks.capture(ids[:1])[1]
        self._dense: dict[int, Tensor] = {}  # the dense model's last states [tokens, hidden] by sequence

    def __call__(self, assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
        """The divergence of each assignment on the sequences `numbers`, in nats per token."""
        if new := [number for number in numbers if number not in self._dense]:
            dense = (DENSE,) * len(self._blocks)
            self._dense |= dict(zip(new, self._run([dense], new)[dense], strict=True))
        states = self._run(assignments, numbers)
        sums = dict.fromkeys(assignments, 0.0)
        with self._blocks.ending() as logits, torch.no_grad():
            for row, number in enumerate(numbers):
                ids = self._ids[number : number + 1]
                target = logits(self._dense[number][None], ids)[0].float().log_softmax(dim=-1)
                for assignment in sums:
                    found = logits(states[assignment][row : row + 1], ids)[0].float().log_softmax(dim=-1)
                    apart = nn.functional.kl_div(found, target, reduction="none", log_target=True)
                    sums[assignment] += float(apart.sum(dtype=torch.float64)) / len(found)
        return [sums[assignment] / len(numbers) for assignment in assignments]

    def _run(self, assignments: Sequence[Assignment], numbers: Sequence[int]) -> dict[Assignment, Tensor]:
        """The states [sequences, tokens, hidden] after the last block, by assignment."""
        first = torch.cat([self._blocks.capture(self._ids[number : number + 1])[0] for number in numbers])
        states: dict[Assignment, Tensor] = {(): first}
        for index in range(len(self._blocks)):
            prefixes = sorted({assignment[: index + 1] for assignment in assignments}, key=lambda prefix: prefix[-1])
            after: dict[Assignment, Tensor] = {}
            with self._blocks.loaded(index):
                loaded = DENSE
                for prefix in prefixes:
                    if prefix[-1] != loaded:
                        loaded = prefix[-1]
                        self._load(index, loaded)
                    after[prefix] = self._through(index, states[prefix[:-1]])
            states = after
        return states

    def _load(self, index: int, level: int) -> None:
        """Load the weights of `level` into the loaded block."""
        weights = Shards([level_file(self._folder, level, index)])
        for name, linear in self._blocks.linears(index).items():
            linear.get_parameter("weight").data.copy_(weights.tensor(name))

    def _through(self, index: int, states: Tensor) -> Tensor:
        """The states [sequences, tokens, hidden] after the loaded block, computed one sequence at a time."""
        call = self._call[index]
        return torch.cat([self._blocks.run(index, states[row : row + 1].clone(), call) for row in range(len(states))])
