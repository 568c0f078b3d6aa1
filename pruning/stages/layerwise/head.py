"""Rounds the head by what it reads: GPTQ with the Gram matrix of the final hidden states of the calibration.

A head tied to the embeddings rounds both. As embeddings their error matters little: on SmolLM2-135M in 4 bits the
divergence is 0.01 nats by the embeddings alone and 0.1 by the head.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.passes.observation import observing
from pruning.passes.statistics import Gram, InputStatistics
from pruning.passes.sweep import Enough, Sweep, pass_on
from pruning.recipe.options import Round
from pruning.stages.context import StageContext, StageModel
from pruning.techniques.gptq import GPTQ

DAMPING = 0.1
"""As in GPTQ, which has 0.01 for layers: the embeddings' part of a tied head is an error in every direction alike."""
ROWS = 16384
"""Tokens rounded at once, in float32; they do not depend on one another."""


def head_of(network: nn.Module) -> tuple[str, nn.Linear]:
    """The head and the name of its weight, which is the embeddings' if they are tied; ModelRefused without a head."""
    own: Any = network
    head = own.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelRefused('the model has no linear head, which head = "gptq" would round: leave that option out')
    return next(name for name, weight in network.named_parameters() if weight is head.weight), head


@torch.no_grad()
def head_inputs(model: StageModel, context: StageContext) -> InputStatistics:
    """The Gram matrix of the head's inputs on the calibration; a killed pass over the blocks is resumed."""
    blocks = context.blocks(model)
    name, head = head_of(blocks.model)
    ids, batch = context.inputs.calibration[0], context.inputs.recipe.calibration.batch
    sweep = Sweep(blocks, ids, batch, context.folder / "head", last=True)
    sweep.visit(pass_on, "reading what the head reads", 1)
    states = sweep.states(len(blocks))
    with blocks.ending() as logits, observing({name: head}, (Gram,)) as observed:
        for rows in sweep.rows:
            with suppress(Enough):  # before the head computes anything
                logits(states[rows].clone(), ids[rows])
    return observed[name]


def round_head(stage: Round, weight: Tensor, observed: InputStatistics) -> Tensor:
    """Round `weight` [tokens, hidden] in place by GPTQ; returns the grids, float16 [tokens, groups(, 2)]."""
    technique = GPTQ(bits=stage.bits, group=stage.group, scheme=stage.scheme, damping=DAMPING)
    grids = []
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS]
        exact = rows.float()
        grids.append(technique.apply(exact, observed))
        rows.copy_(exact.bfloat16())
    return torch.cat(grids)
