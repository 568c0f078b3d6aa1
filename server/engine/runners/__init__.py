"""What computes logits for a batch; each runner is one file behind this protocol."""

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct
from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice


class Options(Struct, frozen=True):
    """What a runner is made for, and what a caller may fix of the native one."""

    slots: int
    context: int
    batch_tokens: int = 512
    """The most ids of one batch."""
    key_bits: Literal[8, 16] = 16
    """Of the keys and values in the cache."""
    threads: int | None = None
    """None: as many as this process may use, less one for HTTP."""
    instructions: str = ""
    """The instruction set by name; empty: the best there is."""


class Runner(Protocol):
    """Holds a model and the cache of keys and values; only the engine's thread calls it."""

    vocabulary: int
    choices: tuple[Choice, ...]
    exact_rows: bool
    """Whether a row's logits are the same bits alone, in a chunk, and beside any others."""

    def forward(self, batch: Batch) -> Tensor:
        """Compute every chunk; return float32 logits [len(batch.sampled), vocabulary] on the CPU, in that order."""
        ...


class Scoring(Runner, Protocol):
    """A runner that can also score texts."""

    def last(self, batch: Batch, counts: Sequence[int]) -> Tensor:
        """Compute every chunk; return float32 logits [sum(counts), vocabulary] of the last `counts[i]` ids of each."""
        ...
