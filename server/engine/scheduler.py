"""Decides which tokens the next forward pass computes: first in, first out, at most `batch_tokens` a pass.

It knows no clock, no thread and no tensor, so that random traffic can test it in milliseconds."""

from collections import deque
from collections.abc import Sequence as Ids

from server.engine.batch import Batch, Chunk
from server.engine.sequence import Sequence
from server.errors import ConfigError, Overloaded


class Slot:
    """One row of the cache: whose it is, and after that what it still holds and for which skill."""

    def __init__(self) -> None:
        self.skill = ""
        self.ids: list[int] = []
        self.sequence: Sequence | None = None

    def shared(self, sequence: Sequence) -> int:
        """How many prompt ids the slot already holds; never all, for the last one's logits are needed."""
        if self.skill != sequence.skill:
            return 0
        limit = min(len(self.ids), len(sequence.prompt) - 1)
        return next((i for i in range(limit) if self.ids[i] != sequence.prompt[i]), limit)


class Scheduler:
    """Continuous batching over `slots` sequences of at most `context` ids; raises Overloaded when the queue is full."""

    def __init__(self, *, slots: int, context: int, batch_tokens: int, max_waiting: int) -> None:
        if slots < 1 or batch_tokens < slots:
            raise ConfigError(f"slots is {slots}, batch_tokens {batch_tokens}; it must be 1 <= slots <= batch_tokens.")
        self.context = context
        self.batch_tokens = batch_tokens
        self.max_waiting = max_waiting
        self.slots = [Slot() for _ in range(slots)]
        self.free = list(range(slots))  # the least recently used first
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; Overloaded, which says when to come back, if `max_waiting` wait beyond the free slots."""
        assert 0 < len(sequence.prompt) <= self.context - sequence.sampling.max_tokens
        if len(self.waiting) >= self.max_waiting + len(self.free):
            rounds = 1 + len(self.waiting) // len(self.slots)  # a round of replies takes a second or more
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again later.", retry_after=rounds)
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """Admit what fits, then plan one pass: a token for each decoding sequence, prompts with what is left."""
        while self.waiting and self.free:
            self._admit(self.waiting.popleft())
        budget = self.batch_tokens
        chunks = []
        # Decoding first: a long prompt must not stall the replies that are being read.
        for sequence in sorted(self.running, key=lambda sequence: sequence.generated == 0):
            count = min(sequence.remaining, budget)
            if count:
                chunks.append(_chunk(sequence, count))
                budget -= count
        return Batch(tuple(chunks))

    def commit(self, batch: Batch, tokens: Ids[int]) -> None:
        """Take over a computed pass and its sampled ids; sequences aborted meanwhile are passed over."""
        for chunk in batch.chunks:
            chunk.sequence.computed = chunk.end
        for sequence, token in zip(batch.sampled, tokens, strict=True):
            if sequence.slot is not None:
                sequence.append(token)
                if sequence.finish:
                    self._release(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; its slot is free for the next pass."""
        if sequence.slot is not None:
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _admit(self, sequence: Sequence) -> None:
        index = max(self.free, key=lambda index: self.slots[index].shared(sequence))
        slot = self.slots[index]
        sequence.cached = sequence.computed = slot.shared(sequence)
        sequence.slot = index
        slot.skill, slot.ids, slot.sequence = sequence.skill, [], sequence
        self.free.remove(index)
        self.running.append(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        slot = self.slots[sequence.slot]
        slot.ids, slot.sequence = sequence.tokens[: sequence.computed], None
        self.free.append(sequence.slot)
        self.running.remove(sequence)
        sequence.slot = None


def _chunk(sequence: Sequence, count: int) -> Chunk:
    assert sequence.slot is not None
    start, end = sequence.computed, sequence.computed + count
    return Chunk(sequence, sequence.slot, start, tuple(sequence.tokens[start:end]), end == len(sequence.tokens))
