"""SparseGPT as in the authors' repository, as a baseline for speed: a plain loop over blocks and layers in torch.

Every linear layer has its own Hessian and hooks; a block runs once to observe and once to pass on, as theirs does.

    python -m tests.reference.plain_sparsegpt RECIPE CACHE

Prunes one model with it and with ours, in turn and on the same ids, and prints both times and the masks' agreement.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pruning.recipe.options import Layerwise
from pruning.recipe.recipe import read
from pruning.run.pipeline import APPLY
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import prepare

PERCENT_DAMP, BLOCK = 0.01, 128


class Layer:
    """The Hessian of one linear layer's inputs, and the sweep over its columns."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.H = torch.zeros(linear.in_features, linear.in_features)
        self.count = 0

    def add_batch(self, inputs: Tensor) -> None:
        batch = inputs.shape[0]
        columns = inputs.reshape(-1, inputs.shape[-1]).t().float()
        self.H *= self.count / (self.count + batch)
        self.count += batch
        columns = columns * (2 / self.count) ** 0.5
        self.H += columns.matmul(columns.t())

    def prune(self, keep: int, of: int) -> None:
        W, H = self.linear.weight.data.clone(), self.H  # noqa: N806
        dead = H.diagonal() == 0
        H[dead, dead] = 1
        W[:, dead] = 0
        H.diagonal().add_(PERCENT_DAMP * H.diagonal().mean())
        inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
        for start in range(0, W.shape[1], BLOCK):
            end = min(start + BLOCK, W.shape[1])
            _sweep(W, inverse, slice(start, end), (keep, of))
        self.linear.weight.data = W


def _sweep(W: Tensor, inverse: Tensor, block: slice, pattern: tuple[int, int]) -> None:  # noqa: N803
    keep, of = pattern
    part, factor = W[:, block].clone(), inverse[block, block]
    done, errors, mask = torch.zeros_like(part), torch.zeros_like(part), torch.zeros_like(part, dtype=torch.bool)
    for i in range(part.shape[1]):
        if i % of == 0:
            scores = part[:, i : i + of] ** 2 / factor.diagonal()[i : i + of].reshape(1, -1) ** 2
            mask.scatter_(1, i + scores.topk(of - keep, dim=1, largest=False)[1], True)
        column, diagonal = part[:, i], factor[i, i]
        kept = column.clone()
        kept[mask[:, i]] = 0
        done[:, i] = kept
        error = (column - kept) / diagonal
        part[:, i:] -= error.unsqueeze(1).matmul(factor[i, i:].unsqueeze(0))
        errors[:, i] = error
    W[:, block] = done
    W[:, block.stop :] -= errors.matmul(inverse[block, block.stop :])


@torch.no_grad()
def plain(model: Any, ids: Tensor, keep: int, of: int) -> None:
    """Prune every block of a Llama in place, one sequence at a time, as their `llama.py` does."""
    inputs = torch.stack([model.model.embed_tokens(row[None])[0] for row in ids])
    positions = torch.arange(ids.shape[1])[None]
    rotary = model.model.rotary_emb(inputs[:1], positions)
    outputs = torch.zeros_like(inputs)
    for block in model.model.layers:
        layers = {name: Layer(module) for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        hooks = [
            layer.linear.register_forward_hook(lambda _, args, __, layer=layer: layer.add_batch(args[0]))
            for layer in layers.values()
        ]
        for row in range(len(ids)):
            _run(block, inputs[row], rotary)
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.prune(keep, of)
        for row in range(len(ids)):
            outputs[row] = _run(block, inputs[row], rotary)
        inputs, outputs = outputs, inputs


def _run(block: nn.Module, states: Tensor, rotary: Any) -> Tensor:
    output = block(states[None], attention_mask=None, position_embeddings=rotary)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result.view(states.shape)


def main() -> None:
    """Time both; ours includes reading and writing its files."""
    recipe, cache = read(Path(sys.argv[1])), Path(sys.argv[2])
    inputs = prepare(recipe, cache)
    stage = recipe.stages[0]
    assert isinstance(stage, Layerwise)
    assert isinstance(stage.technique.sparsity, str)
    keep, of = map(int, stage.technique.sparsity.split(":"))
    model: Any = AutoModelForCausalLM.from_pretrained(inputs.base.path, dtype=torch.float32)
    with TemporaryDirectory(dir=cache) as folder:
        start = monotonic()
        source = APPLY[Layerwise](
            stage, StageModel(inputs.base.config, inputs.base), StageContext(inputs, Path(folder))
        )[0].source
        ours = monotonic() - start
        start = monotonic()
        plain(model, inputs.calibration[0], keep, of)
        theirs = monotonic() - start
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
        same = [
            ((source.tensor(f"{name}.weight") == 0) == (model.get_submodule(name).weight.bfloat16() == 0))
            .float()
            .mean()
            for name in linears
        ]
    print(f"ours {ours:.1f} s, plain loop {theirs:.1f} s: {ours / theirs:.2f}")
    print(
        f"masks agree on {torch.stack(same).mean():.4%} of the weights (first block {torch.stack(same[:7]).mean():.4%})"
    )


if __name__ == "__main__":
    main()
