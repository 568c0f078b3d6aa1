"""The journal of a training run: weights, optimiser and scores in one file, replaced atomically.

A run killed at any moment and restarted repeats at most one interval and ends with the same result, bit for bit.
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
from pruning.stages.training.mixture import DomainMixture
from server.artifact.checkpoint.safetensors_file import SafetensorsWriter
from server.storage.files import replacing

ENTRY = "state"


class State(msgspec.Struct, frozen=True):
    """How far a run is and how it scored."""

    identity: str
    """Of data and precision; a run with another identity starts over."""
    step: int = 0
    scores: tuple[tuple[int, float], ...] = ()
    """(step, held-out score) pairs; lower is better."""
    seconds: float = 0.0
    mixture: DomainMixture | None = None
    """The state of the domains, if there are several."""

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
        """The file of the weights after `step`."""
        return self._folder / f"step-{step:08}.safetensors"

    def state(self, identity: str) -> State:
        """The journalled state of the run with this identity, or an initial state."""
        if not self._file.exists():
            return State(identity)
        with safe_open(self._file, framework="pt") as file:
            state = msgspec.json.decode(file.metadata()[ENTRY], type=State)
        return state if state.identity == identity else State(identity)

    def mapped(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor mapped to the file `name` of the folder, to save memory; its initial content is undefined."""
        path, size = self._folder / name, prod(shape)
        with path.open("ab") as file:  # allocated now: a disk found full through a mapping kills the process
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    def save_weights(self, step: int, tensors: Mapping[str, Tensor]) -> Path:
        """Store `tensors` as the weights after `step`; returns their file."""
        _write(self.weights(step), tensors, {})
        return self.weights(step)

    def save(self, state: State, tensors: Mapping[str, Tensor]) -> None:
        """Store state and tensors, then remove all stored weights but the best step's."""
        _write(self._file, tensors, {ENTRY: msgspec.json.encode(state).decode()})
        for file in self._folder.glob("step-*.safetensors"):
            if file != self.weights(state.best[0]):
                file.unlink()

    def tensors(self) -> Shards:
        """The tensors of the last `save`."""
        return Shards([self._file])


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Stream `tensors` into a temporary file and rename it to `path`; leaves nothing half written."""
    with replacing(path) as partial:
        file = SafetensorsWriter(partial)
        try:
            for name, tensor in tensors.items():
                file.add(name, tensor.cpu())
            file.close(metadata)
        finally:
            file.abandon()
            file.clear()
