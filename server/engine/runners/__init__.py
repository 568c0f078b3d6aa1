"""Runners compute the logits of a batch; each is one file behind this protocol."""

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct
from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice


class Options(Struct, frozen=True):
    """Sizes of a runner, and settings of the native one."""

    slots: int
    context: int
    batch_tokens: int = 512
    """The most ids in a batch."""
    key_bits: Literal[8, 16] = 16
    """Bits of each key and value in the cache."""
    input_bits: Literal[8, 16] = 8
    """Bits that inputs of integer weights are rounded to; 16 computes with their values in bf16, at 2 bytes each."""
    threads: int | None = None
    """None: the cores that this process may use, minus one for HTTP."""
    instructions: str = ""
    """Name of the instruction set; empty: the best available."""


class Runner(Protocol):
    """A model with its KV cache; only the engine's thread calls it."""

    vocabulary: int
    choices: tuple[Choice, ...]
    exact_rows: bool
    """Whether a row's logits have the same bits whatever else is in the batch."""

    def forward(self, batch: Batch) -> Tensor:
        """Compute every chunk; returns float32 logits [sum(batch.wanted), vocabulary] on the CPU."""
        ...


class Scoring(Runner, Protocol):
    """A runner that can also score texts."""

    def last(self, batch: Batch, counts: Sequence[int]) -> Tensor:
        """Compute every chunk; returns float32 logits [sum(counts), vocabulary] of the last `counts[i]` ids of each."""
        ...
