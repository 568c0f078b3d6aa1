"""Corrects a weight before it is pruned, so that on the pruned model's inputs it gives the unpruned model's outputs.

Arai and Ichikawa, Quantization Error Propagation: Revisiting Layer-Wise Post-Training Quantization,
https://arxiv.org/abs/2504.09629, which calls the strength propagation: W* = W + c (W D + R) H^-1, with H = X^ X^T and D
= (X - X^) X^T for the inputs X of the unpruned model and X^ of the pruned one. Deliberate differences: (1) R, for a
layer that writes to the residual stream, also makes up for the error already in the stream; (2) tokens with massive
activations count in H alone, as their error would dominate all others.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.model.blocks import weight_of
from pruning.passes.statistics import Add, Gram, InputStatistics, Statistic
from pruning.passes.sweep import BlockView, Enough, FollowingSweep
from pruning.stages.residual_stream import stream_writers
from pruning.techniques.mathematics.conjugate_gradient import refit_kept

DAMPING = 0.01
"""Added to the diagonal of H, in units of its mean; the techniques' default."""
REFITS = 20
"""Conjugate-gradient steps that refit the other weights to weights held at zero."""
MASSIVE = 10.0
"""A token has massive activations if the norm of its state exceeds this many times its sequence's median."""


class Drift:
    """Error sums of one group of layers over ordinary tokens: of their inputs (D), and of the residual stream (R)."""

    def __init__(self, columns: int) -> None:
        self._inputs = torch.zeros(columns, columns)  # D
        self._streams: dict[str, Tensor] = {}  # R [outputs, columns] of each layer that writes
        self._sequences = 0

    def update(self, ours: Tensor, theirs: Tensor, off: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add a batch of inputs [..., tokens, columns] of the pruned (`ours`) and unpruned model (`theirs`).

        `counts` [sequences * tokens] is true for ordinary tokens. `off` maps each layer that writes to the residual
        stream to the error of the stream before it, unpruned minus pruned, [tokens, outputs].
        """
        self._sequences += ours.shape[:-2].numel()
        own, other = (inputs.flatten(0, -2)[counts] for inputs in (ours, theirs))
        self._inputs.addmm_((other - own).T, own)
        for name, stream in off.items():
            sums = self._streams.setdefault(name, torch.zeros(stream.shape[1], own.shape[1]))
            sums.addmm_(stream[counts].T, own)

    def combine(self, add: Add) -> None:
        """Replace the error sums by those over all processes."""
        count = torch.tensor([self._sequences], dtype=torch.float64)
        for sums in (self._inputs, *self._streams.values(), count):
            add(sums)
        self._sequences = int(count)

    def correction(self, name: str, weight: Tensor, gram: Gram) -> Tensor:
        """W* - W [outputs, inputs] of the layer `name` at strength 1."""
        moved = weight @ self._inputs
        if name in self._streams:
            moved += self._streams[name]
        factor = gram.inverse_factor(DAMPING)
        result: Tensor = moved @ factor.T @ factor * (2 / self._sequences)
        return result


def restore_zeros(weight: Tensor, moved: Tensor, gram: Gram) -> Tensor:
    """`moved` [outputs, inputs] with `weight`'s zeros restored and the other weights refitted."""
    matrix, dead = gram.value, gram.dead
    matrix.diagonal()[dead] = 1
    scale = matrix.diagonal().sqrt()
    matrix.div_(scale).div_(scale[:, None]).diagonal().add_(DAMPING)
    return refit_kept(moved.masked_fill(weight == 0, 0) * scale, moved * scale, matrix, REFITS) / scale


class ForwardTrace:
    """Inputs of a block's layers, and outputs of its stream writers, recorded by hooks in one forward."""

    def __init__(self, view: BlockView, written: Sequence[str]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._view, self._written = view, written

    def clear(self) -> None:
        """Drop what was recorded, for the next forward."""
        self.inputs.clear()
        self.outputs.clear()

    def stream(self, rows: slice, name: str) -> Tensor:
        """The residual stream [tokens, hidden] before the layer `name` writes to it, of the batch `rows`."""
        states = self._view.before(rows)
        for writer in self._written[: self._written.index(name)]:
            states = states + self.outputs[writer].view_as(states)
        return states.flatten(0, -2)


class Correction:
    """Runs each block alongside the unpruned model's, and corrects its weights by `strength`.

    With `sequential`, each group of layers that share an input sees the earlier groups pruned; otherwise all are
    observed at once. The unpruned model's states are journalled in `originals`.
    """

    def __init__(self, strength: float, originals: FollowingSweep, *, sequential: bool) -> None:
        self.strength = strength
        self._originals = originals
        self._sequential = sequential
        self._drifts: dict[str, Drift] = {}

    def observe(self, view: BlockView, needs: tuple[type[Statistic], ...]) -> Iterator[dict[str, InputStatistics]]:
        """Yield the input statistics of the block's layers part by part; the caller prunes each part in between."""
        needs = needs if Gram in needs else (*needs, Gram)
        self._originals.reach(view.index)
        written = stream_writers(view.linears, view.before(view.first), view.sample)
        groups = input_groups(view)
        parts = [[group] for group in groups] if self._sequential else [groups]
        with self._originals.blocks.loaded(view.index):
            for part in parts[:-1]:
                yield self._beside(view, part, needs, written, last=False)
            observed = self._beside(view, parts[-1], needs, written, last=True)
        self._originals.flush(view.index + 1)
        yield observed  # outside the context: pruning the last, widest inputs reuses the other block's memory

    def combine(self, add: Add) -> None:
        """Replace the error sums of the layers observed last by those over all processes."""
        for drift in {id(drift): drift for drift in self._drifts.values()}.values():
            drift.combine(add)

    def correct(self, name: str, weight: Tensor, observed: InputStatistics, *, keep_zeros: bool) -> None:
        """Correct the `weight` [outputs, inputs] of the layer `name` in place, with the statistics in `observed`.

        With `keep_zeros`, for a technique that only quantises, the zeros of earlier stages stay zero.
        """
        moved = weight + self.strength * self._drifts[name].correction(name, weight, observed[Gram])
        weight.copy_(restore_zeros(weight, moved, observed[Gram]) if keep_zeros else moved)

    def _beside(
        self,
        view: BlockView,
        groups: list[list[str]],
        needs: tuple[type[Statistic], ...],
        written: Sequence[str],
        *,
        last: bool,
    ) -> dict[str, InputStatistics]:
        """Run the pruned and the unpruned block on all batches, as far as the inputs of `groups`, and observe both.

        With `last`, the unpruned block runs to its end, to store its states for the next block.
        """
        other = BlockView(self._originals, view.index)
        columns = {group[0]: weight_of(view.linears[group[0]]).shape[1] for group in groups}
        observed = {name: InputStatistics(needs, count, name) for name, count in columns.items()}
        drifts = {name: Drift(count) for name, count in columns.items()}
        names = [name for group in groups for name in group]

        def compare(rows: slice) -> None:
            (other.keep if last else other.see)(rows)
            counts = ordinary_tokens(other.before(rows))
            for group in groups:
                mine, theirs = ours.inputs[group[0]], unpruned.inputs[group[0]]
                writing = [name for name in group if name in written]
                off = {name: unpruned.stream(rows, name) - ours.stream(rows, name) for name in writing}
                observed[group[0]].update(mine)
                drifts[group[0]].update(mine, theirs, off, counts)
            ours.clear()
            unpruned.clear()

        with recording(view, names, written) as ours, recording(other, names, written, whole=last) as unpruned:
            view.run(compare)
        self._drifts = {name: drifts[group[0]] for group in groups for name in group}
        return {name: observed[group[0]] for group in groups for name in group}


@contextmanager
def recording(
    view: BlockView, names: Collection[str], written: Sequence[str] = (), *, whole: bool = False
) -> Iterator[ForwardTrace]:
    """Record the inputs of the layers `names` and the outputs of `written`; a forward stops once all inputs are seen.

    With `whole`, forwards run to their end. Raises ModelRefused if a layer is called twice in a forward.
    """
    record = ForwardTrace(view, written)

    def see(name: str, inputs: Tensor) -> None:
        if name in record.inputs:
            raise ModelRefused(f"{name} is called more than once in a block: use correction = 0")
        record.inputs[name] = inputs
        if len(record.inputs) == len(names) and not whole:
            raise Enough

    linears = view.linears
    handles = [linears[name].register_forward_pre_hook(lambda _, args, name=name: see(name, args[0])) for name in names]
    handles += [
        linears[name].register_forward_hook(lambda _, args, output, name=name: record.outputs.update({name: output}))
        for name in written
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def ordinary_tokens(states: Tensor) -> Tensor:
    """True for each token [sequences * tokens] of `states` [sequences, tokens, hidden] without massive activations."""
    norms = states.norm(dim=-1)
    counts: Tensor = norms <= MASSIVE * norms.median(dim=1, keepdim=True).values
    return counts.flatten()


def input_groups(view: BlockView) -> list[list[str]]:
    """Names of the block's layers, grouped by shared input, in call order.

    Raises ModelRefused for a layer that does not see every token, such as an expert's.
    """
    with recording(view, view.linears) as record, suppress(Enough):
        view.sample()
    groups: dict[int, list[str]] = {}
    for name, inputs in record.inputs.items():
        groups.setdefault(id(inputs), []).append(name)
    tokens = view.before(view.first).shape[:2].numel()
    for name in view.linears:
        if name not in record.inputs or record.inputs[name].shape[:-1].numel() != tokens:
            raise ModelRefused(
                f"{name} does not see every token, so it cannot be compared with the unpruned model: use correction = 0"
            )
    return list(groups.values())
