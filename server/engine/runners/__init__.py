"""What computes logits for a batch; each runner is one file behind this protocol."""

from typing import Protocol

from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice


class Runner(Protocol):
    """Holds a model and the cache of keys and values; only the engine's thread calls it."""

    vocabulary: int
    choices: tuple[Choice, ...]

    def forward(self, batch: Batch) -> Tensor:
        """Compute every chunk; return float32 logits [len(batch.sampled), vocabulary] on the CPU, in that order."""
        ...
