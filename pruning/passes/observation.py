"""Collects statistics of the inputs of linear layers while their block runs; layers with one input share them."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, weight_of
from pruning.passes.statistics import InputStatistics, Statistic
from pruning.passes.sweep import BlockView, Enough


def observe(view: BlockView, needs: tuple[type[Statistic], ...]) -> dict[str, InputStatistics]:
    """The input statistics of every linear layer of a block; runs it once per batch, unless `needs` is empty."""
    linears = view.linears
    if not needs:
        return {name: InputStatistics((), weight_of(linear).shape[1]) for name, linear in linears.items()}
    with observing(linears, needs) as observed:
        view.run()
    refuse_unreached(linears, observed)
    return {name: observed[name] for name in linears}


def count_groups(blocks: Blocks, ids: Tensor) -> int:
    """The number of groups of linear layers with one input in the first block; any `ids` [B, T] will do."""
    states, calls = blocks.capture(ids)
    with blocks.loaded(0):

        def run() -> None:
            with suppress(Enough):
                blocks.run(0, states.clone(), calls[0])

        return sum(1 for _ in observe_groups(blocks.linears(0), (), run))


def observe_groups(
    linears: Mapping[str, nn.Module], needs: tuple[type[Statistic], ...], run: Callable[[], None]
) -> Iterator[dict[str, InputStatistics]]:
    """The statistics of each group of linear layers that share an input, in the order in which they are called.

    `run` runs the block; it is called once per group, so that the caller may prune a group before the next.
    """
    rest = dict(linears)
    while rest:
        with observing(rest, needs, "one input") as observed:
            run()
        if not observed:
            refuse_unreached(rest, observed)
        yield observed
        rest = {n: m for n, m in rest.items() if n not in observed}


def refuse_unreached(linears: Mapping[str, nn.Module], observed: Mapping[str, InputStatistics]) -> None:
    """Raise ModelRefused for a layer without statistics: no token was routed to it."""
    for name in linears:
        if name not in observed:
            raise ModelRefused(f"{name} is never reached by the calibration data, so it cannot be pruned")


@contextmanager
def observing(
    linears: Mapping[str, nn.Module],
    needs: tuple[type[Statistic], ...],
    until: Literal["all", "one input", "end"] = "all",
) -> Iterator[dict[str, InputStatistics]]:
    """Context manager: collects input statistics while the block runs; layers that share an input share them.

    `until` says when to cut the forward of a batch short by raising Enough: "all", once every layer was called; "one
    input", once all layers of the first input were called, so that only these are observed; "end", never.
    """
    observer = _Observer(needs, {"all": len(linears), "one input": None, "end": 0}[until])
    hooks = [linear.register_forward_pre_hook(observer.hook(name)) for name, linear in linears.items()]
    try:
        yield observer.observed
    finally:
        for hook in hooks:
            hook.remove()


class _Observer:
    """Assigns statistics to linear layers; of layers that share an input, the first called updates them."""

    def __init__(self, needs: tuple[type[Statistic], ...], expected: int | None) -> None:
        self.observed: dict[str, InputStatistics] = {}
        self._needs = needs
        self._expected = expected  # layers before a batch ends; None: those of the first input
        self._complete = False  # with None: all layers of the first input are known
        self._last = ""  # the layer called last
        self._leaders: set[str] = set()
        self._seen: list[tuple[weakref.ref[Tensor], InputStatistics]] = []  # live inputs of the first batch

    def hook(self, name: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in self.observed:
                self._meet(name, args[0])
            if name in self._leaders:
                self.observed[name].update(args[0].detach())
            if name == self._last or (self._complete and name in self._leaders):
                raise Enough

        return see

    def _meet(self, name: str, inputs: Tensor) -> None:
        """Assign to `name` the statistics of this very tensor, or new ones."""
        shared = next((observed for seen, observed in self._seen if seen() is inputs), None)
        if shared is None:
            if self._expected is None and self.observed:
                self._complete = True
                raise Enough
            self._leaders.add(name)
            shared = InputStatistics(self._needs, inputs.shape[-1], name)
            self._seen.append((weakref.ref(inputs), shared))
        self.observed[name] = shared
        if len(self.observed) == self._expected:
            self._last = name
