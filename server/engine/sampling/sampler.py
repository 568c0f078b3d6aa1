"""Draws the tokens of a batch: in native code where it is built, else with torch; the ids are the same.

Nothing here is remembered from one batch to the next."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Any, Protocol

import numpy
from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice
from server.engine.native import absent, core
from server.engine.sampling import reference as sampling
from server.engine.sampling.reference import DAMAGED, Mask, changes, uniform
from server.engine.sequence import Score, Sequence
from server.errors import EngineFailed

MOST_IDS = 1 << 28  # of a vocabulary in native code


class Sampler(Protocol):
    """Draws and scores tokens; logits are float32 [rows, vocabulary], with a row for each of `batch.sampled`."""

    choice: Choice

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """One id per row, of those that its mask allows; EngineFailed if a row holds NaN or infinity at its top."""
        ...

    def scores(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Score | None]:
        """What the model thought of the tokens, for the rows whose sampling asks for it."""
        ...


def choose_sampler() -> Sampler:
    """The native one where it can be."""
    reason = absent()
    return NativeSampler() if reason is None else TorchSampler(reason)


class TorchSampler:
    """The definition, as it stands in sampling.py."""

    def __init__(self, reason: str = "it was asked for") -> None:
        self.choice = Choice("sampling", "torch", reason)

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """As the protocol says."""
        return sampling.sample(batch, logits, masks)

    def scores(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Score | None]:
        """As the protocol says."""
        return _scores(batch, logits, tokens, sampling.score)


class NativeSampler:
    """The same in C++, without sorting a vocabulary; `instructions` names a set, the best if empty."""

    def __init__(self, instructions: str = "") -> None:
        self._core = core()
        self._set, why = self._core.choose(instructions)
        self.choice = Choice("sampling", f"native, {self._set.name}", why)

    def sample(self, batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
        """As the protocol says."""
        sequences = batch.sampled
        allowed = [None if mask is None else mask.numpy() for mask in masks or [None] * len(sequences)]
        wishes = numpy.array([_wish(sequence) for sequence in sequences], dtype=numpy.float64).reshape(-1, 5)
        changed = [_changes(sequence) for sequence in sequences]
        drawn: list[int] = self._core.sample(logits.numpy(), wishes, changed, allowed, self._set)
        if -1 in drawn:
            raise EngineFailed(DAMAGED)
        return drawn

    def scores(self, batch: Batch, logits: Tensor, tokens: Ids[int]) -> list[Score | None]:
        """As the protocol says."""
        return _scores(batch, logits, tokens, self._score)

    def _score(self, logits: Tensor, token: int, count: int) -> Score:
        best, logarithms = self._core.score(logits.numpy(), token, count, self._set)
        return Score(logarithms[-1], tuple(zip(best, logarithms[:-1], strict=True)))


def _scores(
    batch: Batch, logits: Tensor, tokens: Ids[int], score: Callable[[Tensor, int, int], Score]
) -> list[Score | None]:
    """By `score` of a row, its token and the number of others, where they are asked for."""
    wanted = [chunk.sequence.sampling.logprobs for chunk in batch.chunks for _ in range(chunk.rows)]
    rows = zip(wanted, logits, tokens, strict=True)
    return [None if count is None else score(row, token, count) for count, row, token in rows]


def _wish(sequence: Sequence) -> tuple[float, float, float, float, int]:
    """Temperature, top_p, min_p, the number that draws, and top_k."""
    wanted = sequence.sampling
    number = uniform(sequence) if wanted.temperature else 0.0
    return wanted.temperature, wanted.top_p, wanted.min_p, number, min(wanted.top_k, MOST_IDS)


def _changes(sequence: Sequence) -> tuple[Any, Any] | None:
    """Ids and what is added to their logits, or None."""
    changed = changes(sequence)
    if not changed:
        return None
    ids = numpy.fromiter(changed.keys(), dtype=numpy.int64, count=len(changed))
    return ids, numpy.fromiter(changed.values(), dtype=numpy.float32, count=len(changed))
