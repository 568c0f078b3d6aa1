"""The stage `reconstruct`: trains each block alone, from the pruned model's states before it, to the base's after it.

A Free Lunch in LLM Compression, https://arxiv.org/abs/2510.14444, with a unit of a whole block, or of attention and MLP
separately. A half's target is the base's residual stream after that half, not the half's own output, so each half also
makes up for errors of earlier blocks. Memory: one block with gradients and moments, and a batch. A killed run repeats
at most one block; a unit that does not improve on held-out sequences is rolled back.
"""

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from pruning.data.draw import data_record
from pruning.errors import RecipeError
from pruning.model.blocks import Blocks
from pruning.model.weights import Overlay, parameters, write_file
from pruning.passes.sweep import BlockView, FollowingSweep, Note, mapped
from pruning.recipe.training import Reconstruct
from pruning.stages.block_weights import block_file
from pruning.stages.context import StageContext, StageModel, blocks_without_weights, total_seconds
from pruning.stages.inputs import Inputs
from pruning.stages.residual_stream import muted
from pruning.stages.training.network import choose_precision, parameters_in_blocks
from pruning.stages.training.reconstruct.block import Block, Fitted, fit, score
from pruning.stages.training.reconstruct.halves import halves_of
from pruning.stages.training.student import Student, TrainedParameters
from server.artifact.checkpoint.lineage import Recovery, Step

logger = logging.getLogger(__name__)

RUNS = 1
"""Forwards of each block per batch, training aside."""
MEASURE = "squared distance to the base's state after a block over that state's square, mean of held-out tokens, blocks"


def apply(stage: Reconstruct, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Train every block in order; the changed weights overlay the model's weights.

    Journals each block's errors, training and seconds, and writes one file of weights per block.
    """
    base = StageModel(context.inputs.base.config, context.inputs.base)
    blocks, originals = context.blocks(model), context.blocks(base)
    visit = ReconstructBlock(stage, context, blocks, originals)
    notes = visit.sweep.visit(visit, "reconstructing", RUNS)
    source = Overlay(model.source, [block_file(context.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={},
        seconds=total_seconds(notes),
        parameters=parameters(source)[0],
        recovery=_recovery(stage, context.inputs, notes, parameters_in_blocks(base)),
    )
    return StageModel(model.config, source), step


def check(stage: Reconstruct, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The unchanged configuration; raises RecipeError for too little calibration or another shape than the base's."""
    sequences = len(context.inputs.calibration[0])
    if sequences < stage.held_out + stage.batch:
        raise RecipeError(
            f"reconstruct with held_out = {stage.held_out} and batch = {stage.batch} needs "
            f"{stage.held_out + stage.batch} sequences, but the calibration has {sequences}"
        )
    given, base = blocks_without_weights(config), blocks_without_weights(context.inputs.base.config)
    if len(given) != len(base):
        raise RecipeError(
            f"reconstruct needs the base's {len(base)} blocks, but the model has {len(given)}: use distill"
        )
    size, wanted = _hidden_size(given), _hidden_size(base)
    if size != wanted:
        raise RecipeError(f"reconstruct needs the base's hidden size {wanted}, but the model has {size}: use distill")
    return config


class Targets(FollowingSweep):
    """The base's own states, computed alongside the pass."""

    def __init__(self, blocks: Blocks, context: StageContext) -> None:
        super().__init__(
            blocks, context.inputs.calibration[0], context.inputs.recipe.calibration.batch, context.folder / "base"
        )
        self._between: list[Tensor] = []

    def between(self, index: int, last: str) -> Tensor:
        """The base's states between attention and MLP of block `index`, whose MLP writes by its linear layer `last`.

        Call it before `after(index)`, whose states use the same file.
        """
        self.reach(index)
        with self.blocks.loaded(index) as block, muted(block.get_submodule(last)):
            BlockView(self, index).advance()
        states = self.states(index + 1)
        if not self._between:
            self._between.append(torch.from_numpy(mapped(self._folder / "between", tuple(states.shape))))
        return self._between[0].copy_(states)


class Part(NamedTuple):
    """The unit of a block that is trained at once."""

    called: str
    block: Block
    names: Collection[str]
    """The trained parameters, by name within the block."""
    context: AbstractContextManager[None]
    """Within this context the block returns the states to compare with the target."""


class ReconstructBlock:
    """A visit that trains one block and writes its changed weights to the stage's folder."""

    def __init__(self, stage: Reconstruct, context: StageContext, blocks: Blocks, originals: Blocks) -> None:
        self.sweep = context.sweep(blocks)
        self._stage, self._folder = stage, context.folder
        self._targets = Targets(originals, context)
        ids = context.inputs.calibration[0]
        self._held_out = range(len(ids))[-stage.held_out :]
        sizes = {stage.batch, stage.held_out % stage.batch or stage.batch}
        self._calls = {size: blocks.capture(ids[:size])[1] for size in sizes}
        self._precision = choose_precision()
        logger.info("reconstructing in %s: %s", self._precision.name, self._precision.reason)

    def __call__(self, view: BlockView) -> Note:
        """Train, save, and pass on the states; notes the errors before and after, the trained parts and the seconds."""
        start = monotonic()
        parts = self._parts(view)
        whole, module = parts[-1].block, view.block
        original = {name: parameter.detach().bfloat16() for name, parameter in module.named_parameters()}
        before = score(whole, self._held_out, self._stage.batch)
        fits = [self._fit(view, part) for part in parts]
        after, kept = fits[-1].best[1], {n: w for fitted in fits if fitted.best[0] for n, w in fitted.weights.items()}
        if kept and after >= before:
            logger.warning(
                "block %d is rolled back: its held-out error was %.5f before, then %.5f", view.index, before, after
            )
            module.load_state_dict(original, strict=False)
            after, kept = before, {}
        write_file(block_file(self._folder, view.index), kept)  # weights not in the file stay quantised, if they were
        view.advance()
        trained = [
            {"steps": fitted.scores[-1][0], "parameters": sum(weight.numel() for weight in fitted.weights.values())}
            for fitted in fits
        ]
        size = sum(weight.numel() for weight in original.values())
        note = {"before": before, "after": after, "kept": bool(kept), "parameters": size, "trained": trained}
        return note | {"seconds": monotonic() - start}

    def _parts(self, view: BlockView) -> list[Part]:
        """The parts to train, in order; the target of the last is the base's state after the block."""
        module, states = view.block, self.sweep.states(view.index)
        calls = {size: calls[view.index] for size, calls in self._calls.items()}
        if self._stage.unit == "block":
            block = Block(module, states, self._targets.after(view.index), calls)
            return [Part(f"block {view.index}", block, dict(module.named_parameters()), nullcontext())]
        some = self._stage.batch
        halves = halves_of(module, states[:some], calls[some])
        between = Block(module, states, self._targets.between(view.index, halves.last), calls)
        after = Block(module, states, self._targets.after(view.index), calls)
        last = module.get_submodule(halves.last)
        return [
            Part(f"the attention of block {view.index}", between, halves.first, muted(last)),
            Part(f"the MLP of block {view.index}", after, halves.second, nullcontext()),
        ]

    def _fit(self, view: BlockView, part: Part) -> Fitted:
        """Train one part and load its best weights; zeros in linear layers stay zero."""
        prefix, module = f"{self.sweep.blocks.path}.{view.index}", part.block.module
        named = {f"{prefix}.{name}": module.get_parameter(name) for name in part.names}
        pruned = {
            name: linear.get_parameter("weight").data == 0 for name, linear in view.linears.items() if name in named
        }
        student = Student(module, TrainedParameters(named, pruned))
        with part.context:
            fitted = fit(self._stage, part.block, student, self._precision, f"{self._stage.seed}, {view.index}")
        (_, before), (step, _) = fitted.scores[0], fitted.best
        student.put(fitted.weights)
        module.requires_grad_(False)
        if step == 0:
            logger.warning("%s is rolled back: its held-out error, %.5f before, never fell", part.called, before)
        return fitted


def _hidden_size(blocks: Blocks) -> int:
    """The width of the embeddings, and so of the hidden states."""
    model: Any = blocks.model
    size: int = model.get_input_embeddings().weight.shape[-1]
    return size


def _recovery(stage: Reconstruct, inputs: Inputs, notes: list[Note], base: int) -> Recovery:
    """The lineage's record of all blocks together; `base` is the number of parameters in the base's blocks."""
    ids, data = inputs.calibration
    training, held_out = ids[: -stage.held_out], ids[-stage.held_out :]
    before, after = (sum(note[key] for note in notes) / len(notes) for key in ("before", "after"))
    logger.info("held-out error of the blocks %.5f before reconstruction, %.5f after, on average", before, after)
    step = stage.batch * ids.shape[1]
    tokens = [step * sum(part["steps"] for part in note["trained"]) for note in notes]
    work = [
        step * part["steps"] * (2 * note["parameters"] + 4 * part["parameters"])
        for note in notes
        for part in note["trained"]
    ]
    passes = max(len(note["trained"]) for note in notes)
    return Recovery(
        training=data_record(data.source, training, data.seed),
        held_out=data_record(data.source, held_out, data.seed),
        tokens=max(tokens),
        flops=float(sum(work) + passes * 2 * base * ids.numel()),
        formula="(2 N + 4 n) T for each part that is trained (T: tokens, n: its parameters, N: its block's) "
        "+ 2 N C for each pass of the base (N: parameters of its blocks, C: tokens of the calibration); zeros included",
        precision=choose_precision().name,
        measure=MEASURE,
        before=before,
        after=after,
        rolled_back=not any(note["kept"] for note in notes),
    )
