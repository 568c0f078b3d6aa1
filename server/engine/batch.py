"""The input of one forward pass: chunks of token ids, each with its block table and first position.

A batch is a value: it stays valid for the runner while another thread aborts its sequences."""

from collections.abc import Sequence as Ids

from msgspec import Struct

from server.engine.sequence import Sequence


class Chunk(Struct, frozen=True):
    """Consecutive ids of one sequence: a piece of its prompt, or one id and its guesses while it decodes."""

    sequence: Sequence
    slot: int
    start: int
    """Position of the first id."""
    ids: tuple[int, ...]
    wants_logits: bool
    blocks: tuple[int, ...] = ()
    """Block table of the sequence; empty: the slot's default blocks."""
    guesses: int = 0
    """Number of last ids that were guessed; each gets a logits row of its own."""
    prompt_rows: int = 0
    """Number of logits rows, before the others, that predict ids of the prompt."""

    @property
    def end(self) -> int:
        """The position after the chunk's last id."""
        return self.start + len(self.ids)

    @property
    def rows(self) -> int:
        """The number of rows to sample from: the last id's and its guesses', or none while the prompt goes on."""
        return 1 + self.guesses if self.wants_logits else 0

    def accepted(self, tokens: Ids[int]) -> int:
        """How many sampled ids to accept: the correct leading guesses, plus one."""
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
        """The number of ids that the pass computes."""
        return sum(len(chunk.ids) for chunk in self.chunks)

    @property
    def wanted(self) -> tuple[int, ...]:
        """How many of each chunk's last ids get a logits row."""
        return tuple(chunk.prompt_rows + chunk.rows for chunk in self.chunks)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """One sequence per row to sample from; rows after a guess assume it was right."""
        return tuple(
            chunk.sequence.extended(chunk.ids[len(chunk.ids) - chunk.guesses :][:row]) if row else chunk.sequence
            for chunk in self.chunks
            for row in range(chunk.rows)
        )
