"""Which models answer, each for the skills that name it.

A new one takes the next request, and the one before ends once its last reply has.

Belongs to the asyncio loop: only the numbers for metrics are read from elsewhere.
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
from server.engine.stream import Stream
from server.errors import Overloaded
from server.metering.metrics import EngineState
from server.text.tokenizer import Tokenizer

POLL_SECONDS = 0.05
AGAIN_SECONDS = 1


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


class Model(Struct, frozen=True, eq=False, weakref=True):
    """One loaded artifact; `name` is what labels call it."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    lineage: Lineage
    choices: Sequence[Choice] = ()


class Successors(Protocol):
    """Says which model is to answer next."""

    def next(self) -> Model | None:
        """Another model, loaded, if there is to be one; called in a thread."""

    def began(self, skills: Sequence[str], name: str) -> None:
        """The first model, or one that `next` handed out, of this `name` answers these skills now."""


class Answering(Struct, frozen=True, eq=False):
    """A model, and who says which one follows it; nobody where it is a directory."""

    model: Model
    successors: Successors | None = None


class Rollout:
    """The current models by what skills call them, and those replaced that still have replies under way.

    `own` is the server's model, which answers the skills that name none.
    """

    def __init__(self, answering: Mapping[str, Answering], own: str) -> None:
        self._answering = dict(answering)
        self._own = own
        self._names = {wanted: (found.model.name,) for wanted, found in answering.items()}
        self._retired: tuple[Model, ...] = ()
        self._users: Counter[Model] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def reference(self, wanted: str) -> str:
        """What a skill that wants this is answered by: the server's own model where it wants none."""
        return wanted or self._own

    def references(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """The models that skills want, each once."""
        return tuple(dict.fromkeys(map(self.reference, wanted)))

    def find(self, reference: str) -> Answering | None:
        """What answers there now, if anything does."""
        return self._answering.get(reference)

    def of(self, wanted: str) -> Model:
        """The current model of a skill that wants this; raises Overloaded where a reload has just taken it away."""
        found = self.find(self.reference(wanted))
        if found is None:
            raise Overloaded(
                "The skill was given another model just now.", retry_after=AGAIN_SECONDS, reason="draining"
            )
        return found.model

    def use(self, wanted: str) -> Model:
        """The same, which is kept until `release`."""
        model = self.of(wanted)
        self._users[model] += 1
        return model

    def release(self, model: Model) -> None:
        """One user less."""
        self._users[model] -= 1

    @property
    def models(self) -> tuple[Model, ...]:
        """The current ones."""
        return tuple(found.model for found in list(self._answering.values()))

    @property
    def successors(self) -> Mapping[str, Successors]:
        """Who says what follows, by the model's reference."""
        return {wanted: found.successors for wanted, found in self._answering.items() if found.successors}

    def names(self, wanted: str) -> tuple[str, ...]:
        """Every model that has answered such skills since the server started."""
        return self._names.get(self.reference(wanted), ())

    @property
    def engines(self) -> Sequence[tuple[str, Engine]]:
        """Each engine that runs and its model's name, those replaced included."""
        return [(model.name, model.engine) for model in (*self.models, *self._retired)]

    @property
    def failure(self) -> str | None:
        """Why a current engine does not run, or None while all do."""
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
        """Let `model` answer from now on; not, where `successors` no longer say what answers there."""
        old = self.find(reference)
        if old is None or old.successors is not successors:
            return False
        self._place(reference, Answering(model, successors))
        self._retire(old.model)
        return True

    def arrange(self, wanted: Iterable[str], more: Mapping[str, Answering]) -> None:
        """Let these models answer and no others, of which `more` are new; those that are not wanted go."""
        references = self.references(wanted)
        for reference, answering in more.items():
            self._place(reference, answering)
        for reference in [name for name in self._answering if name not in references]:
            self._retire(self._answering.pop(reference).model)

    def _place(self, reference: str, answering: Answering) -> None:
        answering.model.engine.start()
        self._answering[reference] = answering
        self._names[reference] = tuple(dict.fromkeys((*self._names.get(reference, ()), answering.model.name)))

    def _retire(self, old: Model) -> None:
        self._retired += (old,)
        task = asyncio.get_running_loop().create_task(self._end(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, old: Model) -> None:
        """Wait until the last reply of `old` has ended, then stop it and let go of its memory."""
        while self._users[old]:
            await asyncio.sleep(POLL_SECONDS)
        await to_thread.run_sync(old.engine.stop)
        self._retired = tuple(model for model in self._retired if model is not old)
        del self._users[old]
