"""How many ids of a prompt are the skill's own: those that every conversation with it begins with.

The engine keeps them computed; which they are is found once for each model and skill, from two conversations.
"""

from collections.abc import Sequence
from itertools import takewhile

from server.rollout import Model
from server.skills import Skill
from server.turns import conversation

PROBES = ("0", "Why?")  # two first questions that share no beginning


class Standing:
    """Belongs to the asyncio loop."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Skill], Sequence[int]] = {}

    def length(self, prompt: Sequence[int], skill: Skill, model: Model) -> int:
        """How many ids at the front of `prompt` are the skill's own."""
        key = (model.name, skill)
        if key not in self._found:
            first, second = (model.tokenizer.chat(conversation(skill, [_asked(text)])) for text in PROBES)
            self._found[key] = first[: common(first, second)]
        return common(self._found[key], prompt)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
