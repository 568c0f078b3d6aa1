"""The Fisher matrix of each linear layer's outputs: how much an error there raises the loss, by one backward pass.

F = mean over tokens of g g^T, where g is the gradient of the sequence's summed next-token loss with respect to the
output of one token. Its labels are the text's own next tokens (the empirical Fisher).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks
from pruning.model.weights import Shards, write_file
from pruning.passes.gradients import Backward, BackwardView
from pruning.passes.sweep import Note

See = Callable[[str, Tensor], None]
"""Called with the name of a layer's weight and the gradients [tokens, outputs] of its outputs."""


class OutputFishers:
    """The Fisher matrices [outputs, outputs] of a model's linear layers, read from files."""

    def __init__(self, files: list[Path], seconds: float) -> None:
        self._shards = Shards(files)
        self._names = set(self._shards.names())
        self.seconds = seconds

    def of(self, name: str) -> Tensor:
        """The matrix of the layer with the weight `name`, float32; ModelRefused without finite gradients."""
        if name not in self._names:
            raise ModelRefused(
                f"{name} is never reached by the calibration data, so it has no gradient to be judged by"
            )
        found = self._shards.tensor(name)
        if not found.isfinite().all():
            raise ModelRefused(f"the gradients of the outputs of {name} are not finite, so it cannot be judged by them")
        return found


def output_fishers(blocks: Blocks, ids: Tensor, folder: Path) -> OutputFishers:
    """Measure the Fisher matrix of every linear layer's outputs over `ids` [sequences, tokens]."""
    notes = Backward(blocks, ids, folder).visit(_Measure(folder))
    files = [_file(folder, index) for index in range(len(blocks))]
    return OutputFishers(files, sum(note["seconds"] for note in notes))


@contextmanager
def observing_gradients(linears: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Context manager: `see` gets the gradients of every layer's outputs while gradients flow back through it."""

    def hook(name: str) -> Any:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            def take(gradient: Tensor) -> None:
                see(name, gradient.detach().flatten(0, -2))

            if output.requires_grad:
                output.register_hook(take)  # type: ignore[no-untyped-call]

        return after

    hooks = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Measure:
    """A visit that writes the Fisher matrices of one block to a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, view: BackwardView) -> Note:
        start = monotonic()
        sums: dict[str, Tensor] = {}

        def see(name: str, gradients: Tensor) -> None:
            outputs = gradients.shape[1]
            total = sums.setdefault(name, torch.zeros(outputs, outputs))
            total.addmm_(gradients.T, gradients)

        with observing_gradients(view.linears, see):
            view.run()
        write_file(_file(self._folder, view.index), {name: total * view.scale for name, total in sums.items()})
        return {"seconds": monotonic() - start}


def _file(folder: Path, index: int) -> Path:
    """The file of the matrices of block `index`."""
    return folder / f"fisher-{index:04}.safetensors"
