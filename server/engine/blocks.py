"""A paged KV cache's bookkeeping: who holds each block, and which blocks hold a prefix that can be reused.

A block is a number; no tensors, no clocks. Each block is held, free or pinned. Blocks are found by a hash chain over
their token ids, as in vLLM's automatic prefix caching, seeded by the skill so that skills never share; behind a skill's
shared prefix it is seeded anew by the caller's cache salt, so that callers never share their own text.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ids

from msgspec import Struct

BLOCK = 32
"""Positions in a block, in every runner's cache."""


class CacheSize(Struct, frozen=True):
    """Size of a cache for `slots` sequences of `context` positions, with room for one context of pinned blocks."""

    slots: int
    context: int

    @property
    def per_sequence(self) -> int:
        """Blocks of the longest sequence."""
        return blocks_for(self.context)

    @property
    def pinned(self) -> int:
        """The most blocks that may be pinned: kept in the cache even while no sequence uses them."""
        return self.per_sequence

    @property
    def count(self) -> int:
        """All blocks."""
        return self.slots * self.per_sequence + self.pinned

    def table(self, slot: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """`blocks`, or the slot's default blocks if empty."""
        return blocks or tuple(range(slot * self.per_sequence, (slot + 1) * self.per_sequence))


class Blocks:
    """Counts the holders of each block, finds blocks by hash, and evicts the least recently used first."""

    def __init__(self, count: int, pinned: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        """Blocks without a holder, least recently used first; their contents can still be found."""
        self.pinned: OrderedDict[int, None] = OrderedDict()
        """Blocks kept even without a holder, first pinned first."""
        self.holders = [0] * count
        self._most_pinned = pinned
        self._found: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    @property
    def held(self) -> int:
        """The number of blocks with a holder."""
        return sum(1 for holders in self.holders if holders)

    def find(self, digest: bytes) -> int | None:
        """The block registered under `digest`."""
        return self._found.get(digest)

    def prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest registered prefix of `hashes`."""
        blocks: list[int] = []
        for digest in hashes:
            block = self._found.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def reserve(self, digest: bytes) -> int | None:
        """The block registered under `digest`, else a free one, pinned under it; None where no more may be pinned.

        Its contents are the caller's to fill before any sequence runs.
        """
        if (found := self.find(digest)) is not None:
            return found
        if len(self.pinned) >= self._most_pinned:
            return None
        block = self.allocate()
        self.register(block, digest, pin=True)
        self.release(block)
        return block

    def spare(self, but: Iterable[int]) -> int:
        """How many blocks can be allocated beside holding the blocks `but`."""
        return len(self.free) - sum(block in self.free for block in but)

    def hold(self, block: int) -> None:
        """Add a holder."""
        self.holders[block] += 1
        self.free.pop(block, None)

    def allocate(self) -> int:
        """Evict the least recently used free block and hold it; there must be one."""
        block, _ = self.free.popitem(last=False)
        self._forget(block)
        self.holders[block] = 1
        return block

    def release(self, block: int) -> None:
        """Remove a holder. A free block can be found until it is allocated."""
        assert self.holders[block] > 0
        self.holders[block] -= 1
        if not self.holders[block] and block not in self.pinned:
            self.free[block] = None
            if block not in self._hashes:
                self.free.move_to_end(block, last=False)  # nobody can find it

    def register(self, block: int, digest: bytes, *, pin: bool) -> None:
        """Enter `block` into the prefix cache under `digest`, unless another block is; `pin` keeps it while unused."""
        if self._found.setdefault(digest, block) == block:
            self._hashes[block] = digest
            if pin and self._most_pinned:
                self._pin(block)

    def _pin(self, block: int) -> None:
        self.pinned[block] = None
        self.free.pop(block, None)
        while len(self.pinned) > self._most_pinned:
            oldest, _ = self.pinned.popitem(last=False)
            if not self.holders[oldest]:
                self.free[oldest] = None

    def _forget(self, block: int) -> None:
        digest = self._hashes.pop(block, None)
        if digest is not None:
            del self._found[digest]


def blocks_for(positions: int) -> int:
    """The number of blocks that hold `positions` positions."""
    return -(-positions // BLOCK)


def root_hash(skill: str) -> bytes:
    """Hash seed that keeps each skill's prefix cache apart."""
    return hashlib.sha256(skill.encode()).digest()


def salted_hash(before: bytes, salt: str) -> bytes:
    """Hash seed of a caller's own blocks, which follow the shared block, or root, of hash `before`."""
    return hashlib.sha256(before + hashlib.sha256(salt.encode()).digest()).digest()


def block_hash(before: bytes, ids: Ids[int]) -> bytes:
    """Hash of a full block of `ids` that follows the block, or root, of hash `before`."""
    return hashlib.sha256(before + array("i", ids).tobytes()).digest()
