"""How many ids of a prompt are the skill's own: those that every conversation with it begins with.

The engine keeps them computed; which they are is found once for each model and skill, from two conversations.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile

PROBES = ("0", "Why?")  # two first questions that share no beginning


MOST = 1000  # reloads and days leave some behind that nobody asks for any more


class Standing:
    """Remembers for each key, a model, a skill and a day, with which ids their prompts begin.

    Belongs to the asyncio loop.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Sequence[int]] = {}

    def length(self, prompt: Sequence[int], key: Hashable, render: Callable[[str], Sequence[int]]) -> int:
        """How many ids at the front of `prompt` are the skill's own; `render` makes the prompt of a first question."""
        if key not in self._found:
            if len(self._found) >= MOST:
                self._found.clear()
            first, second = (render(text) for text in PROBES)
            self._found[key] = first[: common(first, second)]
        return common(self._found[key], prompt)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
