"""Runners without a model, for tests of everything above: each produces predictable token ids."""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from threading import Semaphore
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK
from server.engine.choice import Choice
from server.engine.sequence import Sequence


class Cell(NamedTuple):
    """A token id, and the skill and cache salt of the sequence that wrote it."""

    skill: str
    salt: str
    id: int


class Cells:
    """A KV cache of a `Cell` for each place of each block."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Cell] = {}

    def texts(self, batch: Batch) -> Iterator[tuple[Chunk, list[Cell]]]:
        """Write each chunk; yields it with every entry that it attends to, up to its last id."""
        written: set[tuple[int, int]] = set()
        for chunk in batch.chunks:
            places = [(chunk.blocks[position // BLOCK], position % BLOCK) for position in range(chunk.end)]
            new = places[chunk.start :]
            assert not written & set(new), "two sequences write one place"
            written |= set(new)
            skill, salt = chunk.sequence.skill, chunk.sequence.cache_salt
            self._held |= {place: Cell(skill, salt, id) for place, id in zip(new, chunk.ids, strict=True)}
            yield chunk, [self._held[place] for place in places]


class FakeRunner:
    """Makes `reply(sequence)` the likeliest id; sleeps `delay` seconds a step, fails after `fail_after` steps."""

    def __init__(self, vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        self.vocabulary = vocabulary
        self.exact_rows = True
        self.choices: tuple[Choice, ...] = (Choice("runner", "fake", "no model is needed above it"),)
        self.delay = delay
        self.fail_after = fail_after
        self.steps = 0
        self._permits: Semaphore | None = None

    def reply(self, sequence: Sequence) -> int:
        raise NotImplementedError

    def hold(self, passes: int) -> None:
        """Let `passes` forward passes through; further ones wait for `release`."""
        self._permits = Semaphore(passes)

    def allow(self, passes: int) -> None:
        """Let `passes` more forward passes through."""
        assert self._permits, "the runner is not held"
        self._permits.release(passes)

    def release(self) -> None:
        """Let waiting and further passes through."""
        permits, self._permits = self._permits, None
        if permits is not None:
            permits.release()

    def forward(self, batch: Batch) -> Tensor:
        self.steps += 1
        time.sleep(self.delay)
        if (permits := self._permits) is not None:
            assert permits.acquire(timeout=120), "no permit for a forward pass"
        if self.fail_after is not None and self.steps > self.fail_after:
            raise RuntimeError("the fake runner was told to fail")
        sampled = iter(batch.sampled)
        likeliest: list[int] = []
        for chunk in batch.chunks:
            likeliest += chunk.sequence.prompt[chunk.start + 1 :][: chunk.prompt_rows]
            likeliest += [self.reply(next(sampled)) for _ in range(chunk.rows)]
        logits = torch.zeros(len(likeliest), self.vocabulary)
        logits[range(len(likeliest)), likeliest] = 50.0
        return logits


class ScriptRunner(FakeRunner):
    """Replies with the ids of `script`, then repeats its last id for ever."""

    def __init__(self, script: Ids[int], vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        super().__init__(vocabulary, delay=delay, fail_after=fail_after)
        self.script = tuple(script)

    def reply(self, sequence: Sequence) -> int:
        return self.script[min(sequence.generated, len(self.script) - 1)]


class Listening(ScriptRunner):
    """Keeps the prompts that it computes."""

    def __init__(self, script: Ids[int], vocabulary: int) -> None:
        super().__init__(script, vocabulary)
        self.prompts: list[tuple[int, ...]] = []

    def forward(self, batch: Batch) -> Tensor:
        self.prompts += [chunk.sequence.prompt for chunk in batch.chunks if not chunk.sequence.generated]
        return super().forward(batch)


class EchoRunner(FakeRunner):
    """Repeats the prompt's ids, then stops with `stop_id`."""

    def __init__(self, stop_id: int, vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        super().__init__(vocabulary, delay=delay, fail_after=fail_after)
        self.stop_id = stop_id

    def reply(self, sequence: Sequence) -> int:
        return sequence.prompt[sequence.generated] if sequence.generated < len(sequence.prompt) else self.stop_id
