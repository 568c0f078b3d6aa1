"""Samples the tokens of a batch in native code, or with torch where it is not built; the ids are the same.

Samplers keep no state between batches."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Any, Protocol

import numpy
from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice
from server.engine.native import absent, core
from server.engine.sampling import reference
from server.engine.sampling.constraint import Mask
from server.engine.sampling.reference import DAMAGED, changes, repeated, uniform
from server.engine.sequence import Logprobs, Sequence
from server.errors import EngineFailed

MOST_IDS = 1 << 28  # the largest vocabulary in native code


class Sampler(Protocol):
    """Samples from float32 logits [rows, vocabulary], with one row for each of `batch.sampled`."""

    choice: Choice

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """One id per row, within its mask; EngineFailed if the largest logit of a row is NaN or infinite."""
        ...

    def logprobs(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Logprobs | None]:
        """The log probabilities of each row's token and of the most likely ones; None if its sampling has none."""
        ...

    def row_logprobs(self, logits: Tensor, token: int, count: int) -> Logprobs:
        """The log probabilities of `token` and of the `count` most likely ids, from unchanged logits [vocabulary]."""
        ...


def choose_sampler() -> Sampler:
    """The native sampler if it is built."""
    reason = absent()
    return NativeSampler() if reason is None else TorchSampler(reason)


class TorchSampler:
    """Samples with reference.py."""

    def __init__(self, reason: str = "it was asked for") -> None:
        self.choice = Choice("sampling", "torch", reason)

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """See `Sampler`."""
        return reference.sample(batch, logits, masks)

    def logprobs(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Logprobs | None]:
        """See `Sampler`."""
        return _logprobs(batch, logits, tokens, self.row_logprobs)

    def row_logprobs(self, logits: Tensor, token: int, count: int) -> Logprobs:
        """See `Sampler`."""
        return reference.logprobs(logits, token, count)


class NativeSampler:
    """Samples in C++ without sorting a vocabulary; `instructions` names an instruction set, empty the best."""

    def __init__(self, instructions: str = "") -> None:
        self._core = core()
        self._set, why = self._core.choose(instructions)
        self.choice = Choice("sampling", f"native, {self._set.name}", why)

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """See `Sampler`."""
        sequences = batch.sampled
        allowed = [None if mask is None else mask.view(numpy.uint32) for mask in masks or [None] * len(sequences)]
        options = numpy.array([_options(sequence) for sequence in sequences], dtype=numpy.float64).reshape(-1, 5)
        changed = [_changes(sequence) for sequence in sequences]
        repetitions = [_repetition(sequence) for sequence in sequences]
        drawn: list[int] = self._core.sample(logits.numpy(), options, changed, allowed, self._set, repetitions)
        if -1 in drawn:
            raise EngineFailed(DAMAGED)
        return drawn

    def logprobs(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Logprobs | None]:
        """See `Sampler`."""
        return _logprobs(batch, logits, tokens, self.row_logprobs)

    def row_logprobs(self, logits: Tensor, token: int, count: int) -> Logprobs:
        """See `Sampler`; ValueError if the largest logit is NaN or infinite."""
        top, logarithms = self._core.logprobs(logits.numpy(), token, count, self._set)
        return Logprobs(logarithms[-1], tuple(zip(top, logarithms[:-1], strict=True)))


def _logprobs(
    batch: Batch, logits: Tensor, tokens: Ids[int], of_row: Callable[[Tensor, int, int], Logprobs]
) -> list[Logprobs | None]:
    """Apply `of_row` (logits, token, count) to each row whose sampling has `logprobs`."""
    wanted = [chunk.sequence.sampling.logprobs for chunk in batch.chunks for _ in range(chunk.rows)]
    rows = zip(wanted, logits, tokens, strict=True)
    return [None if count is None else of_row(row, token, count) for count, row, token in rows]


def _options(sequence: Sequence) -> tuple[float, float, float, float, int]:
    """Temperature, top_p, min_p, the uniform number, and top_k, as the native sampler takes them."""
    options = sequence.sampling
    number = uniform(sequence) if options.temperature else 0.0
    return options.temperature, options.top_p, options.min_p, number, min(options.top_k, MOST_IDS)


def _changes(sequence: Sequence) -> tuple[Any, Any] | None:
    """Ids and the numbers to add to their logits, or None."""
    changed = changes(sequence)
    if not changed:
        return None
    ids = numpy.fromiter(changed.keys(), dtype=numpy.int64, count=len(changed))
    return ids, numpy.fromiter(changed.values(), dtype=numpy.float32, count=len(changed))


def _repetition(sequence: Sequence) -> tuple[Any, float] | None:
    """The ids under a repetition penalty and the penalty, or None."""
    ids = repeated(sequence)
    return (numpy.array(ids, dtype=numpy.int64), sequence.sampling.repetition_penalty) if ids else None
