"""Which model answers: a new one takes the next request, and the one before ends once its last reply has.

Belongs to the asyncio loop: only the numbers for metrics are read from elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from anyio import to_thread
from msgspec import Struct

from server.checkpoint.lineage import Lineage
from server.engine.choice import Choice
from server.engine.sequence import Sampling
from server.engine.stream import Stream
from server.metering.metrics import EngineState
from server.tokenizer import Tokenizer

POLL_SECONDS = 0.05


class Engine(EngineState, Protocol):
    """What is used of an engine."""

    context: int

    def submit(self, prompt: Sequence[int], sampling: Sampling, *, skill: str, standing: int = 0) -> Stream:
        """Queue a prompt; raises Overloaded or InvalidRequest."""
        ...

    def start(self) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """End the thread and every stream."""

    @property
    def failure(self) -> str | None:
        """Why the engine does not run, or None while it does."""


class Model(Struct, frozen=True, eq=False):
    """One loaded artifact; `name` is what labels call it."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    lineage: Lineage
    choices: Sequence[Choice] = ()


class Rollout:
    """The current model, and those replaced that still have replies under way."""

    def __init__(self, model: Model) -> None:
        self.current = model
        self.names: tuple[str, ...] = (model.name,)
        """Every model that was current since the server started."""
        self._retired: tuple[Model, ...] = ()
        self._users: Counter[Model] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def use(self) -> Model:
        """The current model, which is kept until `release`."""
        self._users[self.current] += 1
        return self.current

    def release(self, model: Model) -> None:
        """One user less."""
        self._users[model] -= 1

    def start(self) -> None:
        """Start the engine."""
        self.current.engine.start()

    def stop(self) -> None:
        """Stop every engine."""
        for model in (self.current, *self._retired):
            model.engine.stop()

    def replace(self, model: Model) -> None:
        """Let `model` answer from now on; the one before goes once nobody uses it."""
        model.engine.start()
        old, self.current = self.current, model
        self.names = tuple(dict.fromkeys((*self.names, model.name)))
        self._retired += (old,)
        task = asyncio.get_running_loop().create_task(self._retire(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def running(self) -> int:
        """Sequences that hold a slot, in all engines."""
        return sum(model.engine.running for model in (self.current, *self._retired))

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return sum(model.engine.waiting for model in (self.current, *self._retired))

    @property
    def kv_used_ratio(self) -> float:
        """Of the current model's cache."""
        return self.current.engine.kv_used_ratio

    async def _retire(self, old: Model) -> None:
        """Wait until the last reply of `old` has ended, then stop it and let go of its memory."""
        while self._users[old]:
            await asyncio.sleep(POLL_SECONDS)
        await to_thread.run_sync(old.engine.stop)
        self._retired = tuple(model for model in self._retired if model is not old)
        del self._users[old]
