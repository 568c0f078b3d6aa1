"""Which blocks of the cache are whose, and which hold the beginning of a text that the same skill may ask for again.

A block is a number; nothing here knows tensors or clocks. Each block is held, free, or pinned, and never two of these.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ids

from msgspec import Struct

BLOCK = 32
"""Positions in a block, of every runner's cache."""


class Space(Struct, frozen=True):
    """How large a cache is: room for `slots` texts of `context` positions, and for as many pinned blocks as one has."""

    slots: int
    context: int

    @property
    def per_text(self) -> int:
        """Blocks of the longest text."""
        return blocks_for(self.context)

    @property
    def pinned(self) -> int:
        """The most blocks that stay although nobody uses them."""
        return self.per_text

    @property
    def count(self) -> int:
        """All blocks."""
        return self.slots * self.per_text + self.pinned

    def table(self, slot: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """`blocks`, or where there are none, those that are the slot's own as long as nothing is shared."""
        return blocks or tuple(range(slot * self.per_text, (slot + 1) * self.per_text))


class Blocks:
    """Counts who holds each block, finds blocks by what they hold, and forgets the least recently used first."""

    def __init__(self, count: int, pinned: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        """Held by nobody, the least recently used first; what they hold may still be found."""
        self.pinned: OrderedDict[int, None] = OrderedDict()
        """Kept though nobody may hold them, the one pinned first in front."""
        self.holders = [0] * count
        self._most_pinned = pinned
        self._found: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def held(self) -> int:
        """How many blocks somebody holds."""
        return sum(1 for holders in self.holders if holders)

    def find(self, key: bytes) -> int | None:
        """The block that holds what `key` stands for."""
        return self._found.get(key)

    def prefix(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning that is there."""
        blocks: list[int] = []
        for key in keys:
            block = self._found.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def hold(self, block: int) -> None:
        """One more holder."""
        self.holders[block] += 1
        self.free.pop(block, None)

    def take(self) -> int:
        """A block with nothing in it that anyone will find, held by the caller; there must be a free one."""
        block, _ = self.free.popitem(last=False)
        self._forget(block)
        self.holders[block] = 1
        return block

    def release(self, block: int) -> None:
        """One holder less; what it holds can be found until it is taken."""
        assert self.holders[block] > 0
        self.holders[block] -= 1
        if not self.holders[block] and block not in self.pinned:
            self.free[block] = None
            if block not in self._keys:
                self.free.move_to_end(block, last=False)  # nobody can want it again

    def learn(self, block: int, key: bytes, *, pin: bool) -> None:
        """The block now holds what `key` stands for, unless another does already."""
        if self._found.setdefault(key, block) == block:
            self._keys[block] = key
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
        key = self._keys.pop(block, None)
        if key is not None:
            del self._found[key]


def blocks_for(positions: int) -> int:
    """How many blocks hold so many positions."""
    return -(-positions // BLOCK)


def first_key(skill: str) -> bytes:
    """What stands for the beginning of every text of a skill, before its first block."""
    return hashlib.sha256(skill.encode()).digest()


def next_key(key: bytes, ids: Ids[int]) -> bytes:
    """What stands for a block with these ids after the block of `key`."""
    return hashlib.sha256(key + array("i", ids).tobytes()).digest()
