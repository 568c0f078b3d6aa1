"""What one forward pass computes: a few chunks of ids, each with its place in the cache and its first position.

A batch is a value: it stays true for the runner while another thread aborts the sequences it came from."""

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

    @property
    def end(self) -> int:
        """The position after the chunk's last id."""
        return self.start + len(self.ids)


class Batch(Struct, frozen=True):
    """The chunks of one forward pass; no two share a slot."""

    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> int:
        """How many ids the pass computes."""
        return sum(len(chunk.ids) for chunk in self.chunks)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences that get a new token, in the order of the rows of logits."""
        return tuple(chunk.sequence for chunk in self.chunks if chunk.wants_logits)
