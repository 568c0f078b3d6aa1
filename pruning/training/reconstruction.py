"""Trains each block alone towards the base's states after it, given the pruned model's own states before it.

A Free Lunch in LLM Compression, https://arxiv.org/abs/2510.14444, with the whole block as its unit. Memory is one block
with gradients and moments, and a batch; a killed run repeats at most one block. A block that training brings no nearer
on held-out sequences stays as it was.
"""

import logging
from time import monotonic

import msgspec
from torch import Tensor, nn

from pruning.calibration import BlockView, Note, Sweep
from pruning.data import data_record
from pruning.errors import RecipeError
from pruning.inputs import Inputs
from pruning.layerwise import block_file
from pruning.model import Blocks
from pruning.stage import Model, Place, seconds
from pruning.stages import Reconstruct
from pruning.training.block import Block, fit
from pruning.training.network import choose_precision, parameters_in_blocks
from pruning.training.student import Student, Trained
from pruning.weights import Overlay, parameters, write_file
from server.checkpoint.lineage import Recovery, Step

logger = logging.getLogger(__name__)

RUNS = 1
MEASURE = "squared distance to the base's state after a block over that state's square, mean of held-out tokens, blocks"


def apply(stage: Reconstruct, model: Model, place: Place) -> tuple[Model, Step]:
    """Train every block in order; the changed weights lie over the model's source."""
    base = Model(place.inputs.base.config, place.inputs.base)
    blocks, originals = place.blocks(model), place.blocks(base)
    _refuse(stage, place.inputs, blocks, originals)
    visit = ReconstructBlock(stage, place, blocks, originals)
    notes = visit.sweep.visit(visit, "reconstructing", RUNS)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={},
        seconds=seconds(notes),
        parameters=parameters(source)[0],
        recovery=_recovery(stage, place.inputs, notes, (parameters_in_blocks(model), parameters_in_blocks(base))),
    )
    return Model(model.config, source), step


class Targets(Sweep):
    """The base's own states, which follow another pass over the same ids block by block."""

    def __init__(self, blocks: Blocks, place: Place) -> None:
        super().__init__(
            blocks, place.inputs.calibration[0], place.inputs.recipe.calibration.batch, place.folder / "base"
        )
        self._begin()

    def after(self, index: int) -> Tensor:
        """Compute the states [sequences, tokens, hidden] after block `index`, from those before it, which are kept."""
        with self.blocks.loaded(index):
            BlockView(self, index).advance()
        self._files[(index + 1) % 2].flush()
        return self.states(index + 1)


class ReconstructBlock:
    """A visit that trains one block and leaves its weights in `place`'s folder."""

    def __init__(self, stage: Reconstruct, place: Place, blocks: Blocks, originals: Blocks) -> None:
        self.sweep = place.sweep(blocks)
        self._stage, self._folder = stage, place.folder
        self._targets = Targets(originals, place)
        ids = place.inputs.calibration[0]
        sizes = {stage.batch, stage.held_out % stage.batch or stage.batch}
        self._calls = {size: blocks.capture(ids[:size])[1] for size in sizes}
        self._precision = choose_precision()
        logger.info("reconstructing in %s: %s", self._precision.name, self._precision.reason)

    def __call__(self, view: BlockView) -> Note:
        """Train, save, and pass on the states; notes the error before and after, the best step and the seconds."""
        start = monotonic()
        target = self._targets.after(view.index)
        module = self.sweep.blocks.model.get_submodule(f"{self.sweep.blocks.path}.{view.index}")
        calls = {size: calls[view.index] for size, calls in self._calls.items()}
        block = Block(module, self.sweep.states(view.index), target, calls)
        student = self._student(view, module)
        fitted = fit(self._stage, block, student, self._precision, f"{self._stage.seed}, {view.index}")
        (_, before), (step, after) = fitted.scores[0], fitted.best
        student.put(fitted.weights)
        module.requires_grad_(False)
        write_file(block_file(self._folder, view.index), fitted.weights if step else {})  # quantised ones stay so
        view.advance()
        if step == 0:
            logger.warning(
                "block %d is rolled back: its held-out error was %.5f before, never less", view.index, before
            )
        steps = fitted.scores[-1][0]
        return {"before": before, "after": after, "step": step, "steps": steps, "seconds": monotonic() - start}

    def _student(self, view: BlockView, module: nn.Module) -> Student:
        """All of the block's parameters; zeros in its linear layers stay."""
        prefix = f"{self.sweep.blocks.path}.{view.index}"
        named = {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
        pruned = {name: linear.get_parameter("weight").data == 0 for name, linear in view.linears.items()}
        return Student(module, Trained(named, pruned))


def _refuse(stage: Reconstruct, inputs: Inputs, blocks: Blocks, originals: Blocks) -> None:
    """Raise RecipeError where the calibration is too small, or the model's blocks are not the base's."""
    sequences = len(inputs.calibration[0])
    if sequences < stage.held_out + stage.batch:
        raise RecipeError(
            f"reconstruct with held_out = {stage.held_out} and batch = {stage.batch} needs as many sequences, "
            f"but the calibration has {sequences}"
        )
    if len(blocks) != len(originals):
        raise RecipeError(
            f"reconstruct needs the base's {len(originals)} blocks, but the model has {len(blocks)}: use distill"
        )
    sizes = [part.capture(inputs.calibration[0][:1])[0].shape[-1] for part in (blocks, originals)]
    if sizes[0] != sizes[1]:
        raise RecipeError(
            f"reconstruct needs the base's hidden size {sizes[1]}, but the model has {sizes[0]}: use distill"
        )


def _recovery(stage: Reconstruct, inputs: Inputs, notes: list[Note], sizes: tuple[int, int]) -> Recovery:
    """What the lineage says of all blocks together."""
    ids, data = inputs.calibration
    training, held_out = ids[: -stage.held_out], ids[-stage.held_out :]
    before, after = (sum(note[key] for note in notes) / len(notes) for key in ("before", "after"))
    logger.info("held-out error of the blocks %.5f before reconstruction, %.5f after, on average", before, after)
    tokens = [note["steps"] * stage.batch * ids.shape[1] for note in notes]
    flops = 6 * sizes[0] * sum(tokens) / len(notes) + 2 * sizes[1] * ids.numel()
    return Recovery(
        training=data_record(data.source, training, data.seed),
        held_out=data_record(data.source, held_out, data.seed),
        tokens=max(tokens),
        flops=flops,
        formula="6 N T (pruned, T: tokens, mean of blocks) + 2 N C (base, C: tokens of the calibration); "
        "N: parameters of the blocks, zeros included",
        precision=choose_precision().name,
        measure=MEASURE,
        before=before,
        after=after,
        rolled_back=all(note["step"] == 0 for note in notes),
    )
