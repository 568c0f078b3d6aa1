"""What one forward pass computes: a few chunks of ids, each with its place in the cache and its first position.

A batch is a value: it stays true for the runner while another thread aborts the sequences it came from."""

from collections.abc import Sequence as Ids

from msgspec import Struct

from server.engine.sequence import Sequence


class Chunk(Struct, frozen=True):
    """Consecutive ids of one sequence: one while it decodes, a piece of the prompt before."""

    sequence: Sequence
    slot: int
    start: int
    ids: tuple[int, ...]
    wants_logits: bool
    blocks: tuple[int, ...] = ()
    """Where its positions lie in the cache; empty: in the blocks that are the slot's where nothing is shared."""
    guesses: int = 0
    """So many of its last ids were guessed, and each is asked for what it follows."""

    @property
    def end(self) -> int:
        """The position after the chunk's last id."""
        return self.start + len(self.ids)

    @property
    def rows(self) -> int:
        """How many rows of logits it asks for, those of its last ids."""
        return 1 + self.guesses if self.wants_logits else 0

    def agreed(self, tokens: Ids[int]) -> int:
        """How many of the ids sampled for its rows follow ids that are the sequence's: one more than right guesses."""
        guessed = self.ids[len(self.ids) - self.guesses :]
        right = 0
        while right < self.guesses and tokens[right] == guessed[right]:
            right += 1
        return 1 + right


class Batch(Struct, frozen=True):
    """The chunks of one forward pass; no two share a slot."""

    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> int:
        """How many ids the pass computes."""
        return sum(len(chunk.ids) for chunk in self.chunks)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences of all rows of logits, in their order; behind guesses as they are if these were right."""
        return tuple(
            chunk.sequence.ahead(chunk.ids[len(chunk.ids) - chunk.guesses :][:row]) if row else chunk.sequence
            for chunk in self.chunks
            for row in range(chunk.rows)
        )
