"""The token ids that every conversation with a skill begins with, which the prefix cache keeps."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import takewhile
from weakref import WeakKeyDictionary

from anyio import to_thread

from server.models.rollout import Model
from server.skills.skill import Skill
from server.skills.turns import conversation

PROBES = ("0", "Why?")  # two first questions without a common beginning
MOST = 1000  # prefixes of a model; reloads and new days leave unused ones behind
Prefixes = dict[tuple[Skill, date], "asyncio.Task[Sequence[int]]"]


class SharedPrefixes:
    """Caches the shared prefix by model, skill and day, computed in a worker thread. Belongs to the asyncio loop."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Model, Prefixes] = WeakKeyDictionary()

    async def length(self, prompt: Sequence[int], skill: Skill, model: Model) -> int:
        """The number of leading ids of `prompt` that every conversation with `skill` shares.

        Raises InvalidRequest or ArtifactError if the model's chat template fails.
        """
        prefixes = self._found.setdefault(model, {})
        key = (skill, datetime.now(UTC).date())  # a system prompt may contain the date
        if key not in prefixes:
            if len(prefixes) >= MOST:
                prefixes.clear()
            prefixes[key] = _begin(prefixes, key, model)
        # Shielded: a request that is cancelled must not cancel the others that wait for the same prefix.
        return common(await asyncio.shield(prefixes[key]), prompt)


def _begin(prefixes: Prefixes, key: tuple[Skill, date], model: Model) -> "asyncio.Task[Sequence[int]]":
    """Start the task that computes a prefix; a failed task is dropped, so that the next request tries again."""
    task = asyncio.create_task(to_thread.run_sync(shared_prefix, key[0], model))

    def ended(task: "asyncio.Task[Sequence[int]]") -> None:
        if task.cancelled() or task.exception() is not None:
            prefixes.pop(key, None)

    task.add_done_callback(ended)
    return task


def shared_prefix(skill: Skill, model: Model) -> Sequence[int]:
    """The ids that two conversations with different first questions have in common."""
    first, second = (model.tokenizer.chat(conversation(skill, [{"role": "user", "content": text}])) for text in PROBES)
    return first[: common(first, second)]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common beginning of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
