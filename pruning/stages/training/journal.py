"""Where a training run stands: weights, optimiser and scores in one file, written beside and renamed.

Killed at any moment and run again, a run repeats at most one interval and ends with the same result, bit for bit.
"""

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from pruning.model.weights import Shards
from pruning.stages.training.mixture import Mixture
from server.artifact.checkpoint.safetensors_file import SafetensorsFile
from server.storage.files import replacing

ENTRY = "state"


class State(msgspec.Struct, frozen=True):
    """How far a run is and how it has scored."""

    identity: str
    """Of the data and the precision; a run with another identity starts anew."""
    step: int = 0
    scores: tuple[tuple[int, float], ...] = ()
    """The held-out score after each of some steps; lower is better."""
    seconds: float = 0.0
    mixture: Mixture | None = None
    """How the domains stand, where there are several."""

    @property
    def best(self) -> tuple[int, float]:
        """The step with the lowest score and that score; the earliest of equals."""
        return min(self.scores, key=lambda entry: entry[1])


class Journal:
    """Keeps a run's state in `folder`: state.safetensors, and the weights of the best step so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = folder / "state.safetensors"

    def weights(self, step: int) -> Path:
        """Where the weights after `step` lie."""
        return self._folder / f"step-{step:08}.safetensors"

    def state(self, identity: str) -> State:
        """Where the run with this identity stands: at its beginning, if nothing of it is there."""
        if not self._file.exists():
            return State(identity)
        with safe_open(self._file, framework="pt") as file:
            state = msgspec.json.decode(file.metadata()[ENTRY], type=State)
        return state if state.identity == identity else State(identity)

    def mapped(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in a file of the folder, so that it fills no memory; what it held before means nothing."""
        path, size = self._folder / name, prod(shape)
        with path.open("ab") as file:  # claimed now, as a full disk met in a mapping kills the process
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    def save_weights(self, step: int, tensors: Mapping[str, Tensor]) -> Path:
        """Keep `tensors` as the weights after `step`; returns their file."""
        _write(self.weights(step), tensors, {})
        return self.weights(step)

    def save(self, state: State, tensors: Mapping[str, Tensor]) -> None:
        """Keep the whole state, of which `tensors` are a part, then remove all weights but the best."""
        _write(self._file, tensors, {ENTRY: msgspec.json.encode(state).decode()})
        for file in self._folder.glob("step-*.safetensors"):
            if file != self.weights(state.best[0]):
                file.unlink()

    def tensors(self) -> Shards:
        """The tensors that `save` kept."""
        return Shards([self._file])


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` to `path` atomically, one in memory at a time."""
    with replacing(path) as partial:
        file = SafetensorsFile(partial)
        try:
            for name, tensor in tensors.items():
                file.add(name, tensor.cpu())
            file.close(metadata)
        finally:
            file.abandon()
            file.clear()
