"""Decides which tokens the next forward pass computes: first in, first out, at most `batch_tokens` a pass.

It knows no clock, no thread and no tensor, so that random traffic can test it in milliseconds."""

from collections import deque
from collections.abc import Sequence as Ids
from typing import NamedTuple

from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK, Blocks, Space, blocks_for
from server.engine.pace import Pace
from server.engine.sequence import Finish, Sequence
from server.engine.speculation import ROWS, STREAMS, LookUp
from server.errors import ConfigError, Overloaded


class Taken(NamedTuple):
    """An id that became a sequence's own: that of `row` of the logits; `finish` with the last of a reply."""

    sequence: Sequence
    row: int
    finish: Finish | None


class Scheduler:
    """Continuous batching over `slots` sequences of at most `context` ids; raises Overloaded when the queue is full.

    Every sequence has all its blocks from the start, so none is ever stopped for want of one. What several sequences of
    one skill begin with is computed once, and lies in blocks that they share. With `look_up`, passes of a few replies
    also compute guesses of what comes next, whose keys and values are written over where they were wrong.
    """

    def __init__(
        self, *, slots: int, context: int, batch_tokens: int, max_waiting: int, look_up: LookUp | None = None
    ) -> None:
        if slots < 1 or batch_tokens < slots:
            raise ConfigError(f"slots is {slots}, batch_tokens {batch_tokens}; it must be 1 <= slots <= batch_tokens.")
        self.context = context
        self.batch_tokens = batch_tokens
        self.max_waiting = max_waiting
        self.slots = slots
        self.look_up = look_up
        self.pace = Pace()
        space = Space(slots, context)
        self.blocks = Blocks(space.count, space.pinned)
        self.free = list(range(slots))
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
            rounds = 1 + len(self.waiting) // self.slots  # a round of replies takes a second or more
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; try again later.", retry_after=rounds)
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """Admit what fits, then plan one pass: a token for each decoding sequence, prompts with what is left.

        Beside replies that are being read a pass has as many ids as `pace` says.
        """
        while self.waiting and self.free:
            self._admit(self.waiting.popleft())
        if self.look_up and len(self.running) <= STREAMS and all(sequence.generated for sequence in self.running):
            return self._guess(self.look_up)
        replies = sum(1 for sequence in self.running if sequence.generated)
        budget = self.pace.room(replies, self.batch_tokens)
        chunks: list[Chunk] = []
        # Decoding first: a long prompt must not stall the replies that are being read.
        for sequence in sorted(self.running, key=lambda sequence: sequence.generated == 0):
            self._adopt(sequence)
            follows = bool(chunks) and not chunks[-1].sequence.generated
            count = _useful(sequence, min(sequence.remaining, budget), follows)
            if count:
                chunks.append(_chunk(sequence, count))
                budget -= count
        return Batch(tuple(chunks))

    def commit(self, batch: Batch, tokens: Ids[int]) -> list[Taken]:
        """Take over a computed pass and its sampled ids, one for each row; returns which of them count.

        Those after a wrong guess or a reply's end do not, and sequences aborted meanwhile are passed over.
        """
        taken: list[Taken] = []
        row = 0
        for chunk in batch.chunks:
            if chunk.sequence.slot is not None:
                taken += self._take(chunk, row, tokens[row : row + chunk.rows])
            row += chunk.rows
        assert row == len(tokens)
        return taken

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; its slot is free for the next pass."""
        if sequence.slot is not None:
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _guess(self, look_up: LookUp) -> Batch:
        """A pass of replies only, each with its share of the room for guesses."""
        chunks: list[Chunk] = []
        room = min(ROWS, self.batch_tokens) - len(self.running)
        for number, sequence in enumerate(self.running):
            guesses = look_up.guess(sequence, room // (len(self.running) - number))
            chunks.append(_chunk(sequence, sequence.remaining, guesses))
            room -= len(guesses)
        return Batch(tuple(chunks))

    def _take(self, chunk: Chunk, row: int, tokens: Ids[int]) -> list[Taken]:
        """The ids of a chunk's rows that count, now the sequence's; `row` is the first."""
        sequence = chunk.sequence
        agreed = chunk.agreed(tokens) if tokens else 0
        taken: list[Taken] = []
        for place, token in enumerate(tokens[:agreed]):
            if sequence.finish is None:
                sequence.append(token)
                taken.append(Taken(sequence, row + place, sequence.finish))
        sequence.computed = chunk.end - (chunk.rows - len(taken))
        self._learn(sequence)
        if self.look_up and chunk.guesses:
            self.look_up.judge(sequence, chunk.guesses, agreed - 1)
        if sequence.finish:
            self._release(sequence)
        return taken

    def _admit(self, sequence: Sequence) -> None:
        sequence.extend_keys(len(sequence.prompt) // BLOCK)
        # The last id's logits are needed, so its block is never taken over whole.
        shared = self.blocks.prefix(sequence.keys[: (len(sequence.prompt) - 1) // BLOCK])
        for block in shared:
            self.blocks.hold(block)
        needed = blocks_for(len(sequence.prompt) + sequence.sampling.max_tokens - 1)
        sequence.blocks = [*shared, *(self.blocks.take() for _ in range(needed - len(shared)))]
        sequence.cached = sequence.computed = len(shared) * BLOCK
        sequence.slot = self.free.pop(0)
        self.running.append(sequence)

    def _adopt(self, sequence: Sequence) -> None:
        """Go on from what another sequence of the skill has computed since this one was admitted."""
        while sequence.computed % BLOCK == 0 and sequence.computed + BLOCK < len(sequence.prompt):
            index = sequence.computed // BLOCK
            block = self.blocks.find(sequence.keys[index])
            if block is None:
                return
            self.blocks.hold(block)
            self.blocks.release(sequence.blocks[index])
            sequence.blocks[index] = block
            sequence.computed += BLOCK
            sequence.cached += BLOCK

    def _learn(self, sequence: Sequence) -> None:
        """Let others find the blocks that are now full; those with what the skill always begins with stay."""
        whole = sequence.computed // BLOCK
        sequence.extend_keys(whole)
        for index in range(sequence.learnt, whole):
            standing = (index + 1) * BLOCK <= sequence.standing
            self.blocks.learn(sequence.blocks[index], sequence.keys[index], pin=standing)
        sequence.learnt = max(sequence.learnt, whole)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        if self.look_up:
            self.look_up.forget(sequence)
        for block in reversed(sequence.blocks):  # the end is forgotten before the beginning
            self.blocks.release(block)
        sequence.blocks = []
        self.free.append(sequence.slot)
        self.running.remove(sequence)
        sequence.slot = None


def _useful(sequence: Sequence, count: int, follows: bool) -> int:
    """Of `count` ids, as many as are worth computing now: a prompt that goes on stops at the end of a block.

    From there others may take over, and so it may itself: one that `follows` another waits rather than begin a block.
    """
    end = sequence.computed + count
    if end >= len(sequence.prompt):
        return count
    whole = end - end % BLOCK - sequence.computed
    return max(0, whole) if whole >= BLOCK or follows else count


def _chunk(sequence: Sequence, count: int, guesses: tuple[int, ...] = ()) -> Chunk:
    assert sequence.slot is not None
    start, end = sequence.computed, sequence.computed + count
    ids = (*sequence.tokens[start:end], *guesses)
    wants_logits = end == len(sequence.tokens)
    return Chunk(sequence, sequence.slot, start, ids, wants_logits, tuple(sequence.blocks), len(guesses))
