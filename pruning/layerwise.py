"""Prunes every linear layer of one block at a time with one technique, and writes each block's weights to a file.

A block runs twice for each batch: to observe its inputs with dense weights, and to pass on its pruned outputs. In
sequential order it runs once for each group of linears that share an input, as far as that group, and to pass on.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from pruning.allocation import allocate, outlier_share
from pruning.calibration import BlockView, Enough, Note
from pruning.errors import ModelRefused
from pruning.gradients import Moments
from pruning.model import Blocks, weight_of
from pruning.stage import Model, Place, seconds
from pruning.stages import Layerwise
from pruning.statistics import Gram, InputNorm, Statistic
from pruning.technique import Observed, Technique
from pruning.weights import Overlay, parameters, write_file
from server.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

TOKENS_PER_COLUMN = 6
"""With fewer, Gram matrices are near singular and masks change with the rounding (docs/log.md)."""


def apply(stage: Layerwise, model: Model, place: Place) -> tuple[Model, Step]:
    """Prune every linear layer of every block; the pruned weights lie over the model's source."""
    blocks = place.blocks(model)
    groups = count_groups(blocks, place.inputs.calibration[0][:1]) if stage.order == "sequential" else 1
    if Gram in stage.technique.needs:
        warn_of_few_tokens(blocks, place.inputs.calibration[0].numel())
    moments = place.moments(blocks, stage.technique.moments) if stage.technique.moments else None
    measured, techniques = _techniques(stage, blocks, place)
    visit = PruneBlock(stage.technique, place.folder, groups, techniques, moments)
    notes = place.sweep(blocks).visit(visit, "pruning", visit.runs)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage.technique)
    step = Step(
        technique=options.pop("name"),
        options=options,
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=seconds(measured + notes) + round(moments.seconds if moments else 0, 1),
        parameters=parameters(source)[0],
    )
    return Model(model.config, source), step


def warn_of_few_tokens(blocks: Blocks, tokens: int) -> None:
    """Log where `tokens` are too few for the Gram matrix of the block's widest input to be well conditioned."""
    columns, name = max((weight_of(linear).shape[1], name) for name, linear in blocks.linears(0).items())
    if tokens < TOKENS_PER_COLUMN * columns:
        logger.warning(
            "%d tokens of calibration are few for the %d inputs of %s: %d or more give a steadier result",
            tokens, columns, name, TOKENS_PER_COLUMN * columns,
        )  # fmt: skip


def _techniques(stage: Layerwise, blocks: Blocks, place: Place) -> tuple[list[Note], list[Technique]]:
    """The technique with the sparsity of each block, and the notes of the pass that measured it."""
    if not stage.allocation:
        return [], [stage.technique] * len(blocks)
    apart = place._replace(folder=place.folder / "outliers")
    notes = apart.sweep(blocks).visit(Outliers(stage.allocation.outliers), "measuring outliers", 1)
    fractions = allocate([note["outliers"] for note in notes], float(stage.technique.sparsity), stage.allocation.spread)
    return notes, [msgspec.structs.replace(stage.technique, sparsity=fraction) for fraction in fractions]


class Outliers:
    """A visit that notes which share of a dense block's |weight| x input norm is above `times` their mean."""

    def __init__(self, times: float) -> None:
        self._times = times

    def __call__(self, view: BlockView) -> Note:
        """Run the block once."""
        start = monotonic()
        linears = view.linears
        with observing(linears, (InputNorm,), "end") as observed:
            view.advance()
        scores = [weight_of(linears[name]).abs() * observed[name][InputNorm].value for name in observed]
        return {"outliers": outlier_share(scores, self._times), "seconds": monotonic() - start}


class PruneBlock:
    """A visit that applies `technique` and leaves `folder`/block-NNNN.safetensors behind.

    With more `groups` than one, as counted by `count_groups`, each sees those before it pruned. `techniques`, where
    given, are the same technique with another sparsity for each block.
    """

    def __init__(
        self,
        technique: Technique,
        folder: Path,
        groups: int = 1,
        techniques: Sequence[Technique] = (),
        moments: Moments | None = None,
    ) -> None:
        self._technique = technique
        self._techniques = techniques
        self._folder = folder
        self._moments = moments
        self._sequential = groups > 1
        self.runs = groups + 1 if technique.needs else 0
        """Forwards of each block and batch."""

    def __call__(self, view: BlockView) -> Note:
        """Observe, prune, save, and pass on the states; notes the sparsity of each weight and the seconds."""
        start = monotonic()
        linears = view.linears
        technique = self._techniques[view.index] if self._techniques else self._technique
        tensors: dict[str, Tensor] = {}
        for observed in self._observe(view, linears):
            for name in observed:
                moments = self._moments.of(name, linears[name]) if self._moments else {}
                with naming(name):
                    scales = prune(weight_of(linears[name]), technique, observed[name].with_moments(moments))
                tensors |= stored(name, linears[name], scales)
        write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        sparsity = {name: zeros(weight_of(linear)) for name, linear in linears.items()}
        return {"sparsity": sparsity, "seconds": monotonic() - start}

    def _observe(self, view: BlockView, linears: Mapping[str, nn.Module]) -> Iterator[dict[str, Observed]]:
        """The statistics of the layers that are to be pruned next."""
        if not self.runs:
            yield {name: Observed((), weight_of(linear).shape[1]) for name, linear in linears.items()}
        elif self._sequential:
            yield from in_turn(linears, self._technique.needs, view.run)
        else:
            with observing(linears, self._technique.needs) as observed:
                view.run()
            _all_reached(linears, observed)
            yield {name: observed[name] for name in linears}


def count_groups(blocks: Blocks, ids: Tensor) -> int:
    """How many groups of linears that share an input the first block has; what `ids` [B, T] say does not matter."""
    states, calls = blocks.capture(ids)
    with blocks.loaded(0):

        def run() -> None:
            with suppress(Enough):
                blocks.run(0, states.clone(), calls[0])

        return sum(1 for _ in in_turn(blocks.linears(0), (), run))


def in_turn(
    linears: Mapping[str, nn.Module], needs: tuple[type[Statistic], ...], run: Callable[[], None]
) -> Iterator[dict[str, Observed]]:
    """The statistics of one group of linears that share an input after another, in the order of their calls.

    `run` calls the block, and is called again once the caller has pruned a group.
    """
    rest = dict(linears)
    while rest:
        with observing(rest, needs, "one input") as observed:
            run()
        if not observed:
            _all_reached(rest, observed)
        yield observed
        rest = {n: m for n, m in rest.items() if n not in observed}


def _all_reached(linears: Mapping[str, nn.Module], observed: Mapping[str, Observed]) -> None:
    """Raise ModelRefused for a layer that the data never reaches."""
    for name in linears:
        if name not in observed:
            raise ModelRefused(f"{name} is never reached by the calibration data, so it cannot be pruned")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in a refusal which weight it is about."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(f"{name}: {error.message}") from error


def block_file(folder: Path, index: int) -> Path:
    """Where the pruned weights of block `index` lie."""
    return folder / f"block-{index:04}.safetensors"


def prune(weight: Tensor, technique: Technique, observed: Observed) -> Tensor | None:
    """Apply `technique` to `weight` in place and round it to what is stored, so that later blocks see just that."""
    scales = technique.apply(weight, observed)
    weight.copy_(weight.bfloat16())
    return scales


def stored(name: str, linear: nn.Module, scales: Tensor | None) -> dict[str, Tensor]:
    """What is written of one layer: its weight and, where it is quantised, the scales, turned as the weight is."""
    weight = {name: linear.get_parameter("weight").data.bfloat16()}
    if scales is None:
        return weight
    return weight | {f"{name}.scales": scales if isinstance(linear, nn.Linear) else scales.T}


@contextmanager
def observing(
    linears: Mapping[str, nn.Module],
    needs: tuple[type[Statistic], ...],
    until: Literal["all", "one input", "end"] = "all",
) -> Iterator[dict[str, Observed]]:
    """Collect the statistics of each layer's inputs while the context lasts; layers with one input share them.

    A batch ends with Enough once all layers have seen their input, or once those have that share the first input met,
    which are then the only ones, or it runs to its end.
    """
    observer = _Observer(needs, {"all": len(linears), "one input": None, "end": 0}[until])
    hooks = [linear.register_forward_pre_hook(observer.hook(name)) for name, linear in linears.items()]
    try:
        yield observer.observed
    finally:
        for hook in hooks:
            hook.remove()


class _Observer:
    """Gives each linear layer its statistics; the first layer that sees an input updates them for all that share it."""

    def __init__(self, needs: tuple[type[Statistic], ...], expected: int | None) -> None:
        self.observed: dict[str, Observed] = {}
        self._needs = needs
        self._expected = expected  # layers to be seen before a batch ends; None: those that share the first input
        self._complete = False  # without a number: every layer that shares the input is known
        self._last = ""  # the layer that is called after all others
        self._leaders: set[str] = set()
        self._seen: list[tuple[weakref.ref[Tensor], Observed]] = []  # inputs of the first batch that still live

    def hook(self, name: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in self.observed:
                self._meet(name, args[0])
            if name in self._leaders:
                self.observed[name].update(args[0])
            if name == self._last or (self._complete and name in self._leaders):
                raise Enough

        return see

    def _meet(self, name: str, inputs: Tensor) -> None:
        """Find the statistics that are kept of these very inputs, or start new ones."""
        shared = next((observed for seen, observed in self._seen if seen() is inputs), None)
        if shared is None:
            if self._expected is None and self.observed:
                self._complete = True
                raise Enough
            self._leaders.add(name)
            shared = Observed(self._needs, inputs.shape[-1])
            self._seen.append((weakref.ref(inputs), shared))
        self.observed[name] = shared
        if len(self.observed) == self._expected:
            self._last = name


def zeros(weight: Tensor) -> float:
    """The fraction of exact zeros."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()
