"""The models that answer now. A new one takes the next request; the old one is unloaded after its last reply.

Belongs to the asyncio loop; other threads may only read the numbers for metrics.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from anyio import to_thread
from msgspec import Struct

from server.artifact.checkpoint.lineage import Lineage
from server.engine.choice import Choice
from server.engine.sequence import Sampling
from server.engine.sequence import Sequence as EngineSequence
from server.engine.stream import Stream
from server.errors import Overloaded
from server.metering.metrics import EngineState
from server.text.tokenizer import Tokenizer

POLL_SECONDS = 0.05
RETRY_SECONDS = 1


class Engine(EngineState, Protocol):
    """The engine's interface."""

    context: int
    forced_tokens: int
    text: bool
    """Whether replies are text without ids, whose tokens a backend counts."""

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, *, skill: str, shared_prefix: int = 0, cache_salt: str = ""
    ) -> Stream:
        """`submit_together` for one sequence."""

    def submit_together(self, sequences: Sequence[EngineSequence]) -> Sequence[Stream]:
        """Queue the sequences of one request, all or none; raises Overloaded, InvalidRequest or EngineFailed."""
        ...

    def check_options(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for an option that the engine does not support."""

    def start(self) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """End the thread and every stream."""

    @property
    def failure(self) -> str | None:
        """Why the engine stopped, or None while it runs."""


class Model(Struct, frozen=True, eq=False, weakref=True):
    """A loaded artifact; `name` is its label in metrics and the ledger."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    lineage: Lineage
    choices: Sequence[Choice] = ()


class Successors(Protocol):
    """Finds new versions of a model."""

    refusal: tuple[str, str] | None
    """The version that the last `next` refused, and why."""

    def next(self) -> Model | None:
        """A new version, loaded, or None; called in a worker thread."""

    def began(self, skills: Sequence[str], name: str) -> None:
        """Record that the version `name` answers these skills now; called in a worker thread."""


class CurrentModel(Struct, frozen=True, eq=False):
    """A model that answers now, and the finder of its next versions; None for a plain directory."""

    model: Model
    successors: Successors | None = None


class Rollout:
    """The current models by reference, and replaced ones with live replies.

    A reference is a skill's `model` setting; `own` is the server's, for skills that leave it out.
    """

    def __init__(self, current: Mapping[str, CurrentModel], own: str) -> None:
        self._current = dict(current)
        self._own = own
        self._names = {wanted: (found.model.name,) for wanted, found in current.items()}
        self._retired: tuple[Model, ...] = ()
        self._users: Counter[Model] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def reference(self, wanted: str) -> str:
        """The reference for a skill's `model` setting: itself, or the server's own model if empty."""
        return wanted or self._own

    def references(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """The distinct references for these settings, in order."""
        return tuple(dict.fromkeys(map(self.reference, wanted)))

    def find(self, reference: str) -> CurrentModel | None:
        """The current model of a reference, or None."""
        return self._current.get(reference)

    def of(self, wanted: str) -> Model:
        """The current model for a skill's `model` setting; raises Overloaded if a reload has just removed it."""
        found = self.find(self.reference(wanted))
        if found is None:
            raise Overloaded(
                "The skill was given another model just now.", retry_after=RETRY_SECONDS, reason="draining"
            )
        return found.model

    def use(self, wanted: str) -> Model:
        """The current model, as `of`, which stays loaded until `release` is called once for each `use`."""
        model = self.of(wanted)
        self._users[model] += 1
        return model

    def release(self, model: Model) -> None:
        """End one `use` of a model; a replaced model is unloaded after its last."""
        self._users[model] -= 1

    @property
    def models(self) -> tuple[Model, ...]:
        """The current models."""
        return tuple(found.model for found in list(self._current.values()))

    @property
    def successors(self) -> Mapping[str, Successors]:
        """The finders of new versions, by reference."""
        return {wanted: found.successors for wanted, found in self._current.items() if found.successors}

    def names(self, wanted: str) -> tuple[str, ...]:
        """Names of every model that has answered this setting since the server started."""
        return self._names.get(self.reference(wanted), ())

    @property
    def engines(self) -> Sequence[tuple[str, Engine]]:
        """Model name and engine of every loaded model, replaced ones included."""
        return [(model.name, model.engine) for model in (*self.models, *self._retired)]

    @property
    def failure(self) -> str | None:
        """Why a current engine stopped, or None while all run."""
        return next((model.engine.failure for model in self.models if model.engine.failure), None)

    def start(self) -> None:
        """Start the engines."""
        for model in self.models:
            model.engine.start()

    def stop(self) -> None:
        """Stop every engine."""
        for _, engine in self.engines:
            engine.stop()

    def replace(self, reference: str, successors: Successors, model: Model) -> bool:
        """Answer with `model` from now on and retire the old one; False if a reload replaced `successors` meanwhile."""
        old = self.find(reference)
        if old is None or old.successors is not successors:
            return False
        self._place(reference, CurrentModel(model, successors))
        self._retire(old.model)
        return True

    def arrange(self, wanted: Iterable[str], new: Mapping[str, CurrentModel]) -> None:
        """Keep exactly the models for these settings: add the `new` ones, retire the ones no longer wanted."""
        references = self.references(wanted)
        for reference, current in new.items():
            self._place(reference, current)
        for reference in [name for name in self._current if name not in references]:
            self._retire(self._current.pop(reference).model)

    def _place(self, reference: str, current: CurrentModel) -> None:
        current.model.engine.start()
        self._current[reference] = current
        self._names[reference] = tuple(dict.fromkeys((*self._names.get(reference, ()), current.model.name)))

    def _retire(self, old: Model) -> None:
        self._retired += (old,)
        task = asyncio.get_running_loop().create_task(self._end(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, old: Model) -> None:
        """Stop `old` and free its memory after its last reply."""
        while self._users[old]:
            await asyncio.sleep(POLL_SECONDS)
        await to_thread.run_sync(old.engine.stop)
        self._retired = tuple(model for model in self._retired if model is not old)
        del self._users[old]
