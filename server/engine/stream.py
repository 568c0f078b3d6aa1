"""Carries the tokens of one request from the engine's thread to an asyncio loop."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Sequence as Ids
from contextlib import suppress
from typing import NamedTuple, Self

from server.engine.sequence import Finish, Logprobs, PromptLogprob, Sequence
from server.errors import SecateurError


class Token(NamedTuple):
    """A sampled id. A stop id is delivered and counted too."""

    id: int
    finish: Finish | None
    """Why the reply ends with this token; None for all others."""
    logprobs: Logprobs | None = None
    """None unless the request's sampling has `logprobs`."""
    complete: bool = False
    """Whether it is text although it ends the reply with `stop`: its grammar allows nothing more."""
    text: str | None = None
    """A piece of text from a backend that sends no ids; None: the id says it."""


class Stream(AsyncIterator[Token]):
    """Yields each token as it is sampled.

    Raises EngineFailed if the engine fails or stops, InvalidRequest if the reply's grammar becomes too complex.
    """

    def __init__(self, sequence: Sequence, abort: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._abort = abort
        self.loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[list[Token] | SecateurError | None] = asyncio.Queue()
        self._ready: deque[Token] = deque()
        self._ended = False
        self._queued = time.monotonic()

    @property
    def waited(self) -> float | None:
        """Seconds in the queue; None while still queued."""
        begun = self._sequence.begun
        return None if begun is None else max(0.0, begun - self._queued)

    @property
    def prompt(self) -> int:
        """The number of prompt tokens."""
        reported = self._sequence.reported
        return reported.prompt if reported else len(self._sequence.prompt)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt."""
        return self._sequence.prompt

    @property
    def prompt_logprobs(self) -> Ids[PromptLogprob]:
        """Of all prompt ids but the first; complete from the first token on, empty unless the sampling wants them."""
        return self._sequence.prompt_logprobs

    @property
    def most(self) -> int:
        """The most tokens that may be sampled."""
        return self._sequence.sampling.max_tokens

    @property
    def prompt_computed(self) -> bool:
        """Whether the whole prompt was computed."""
        return self.sampled > 0 or self._sequence.finish is not None

    @property
    def cached(self) -> int:
        """Prompt tokens taken from the prefix cache; final from the first token on."""
        reported = self._sequence.reported
        return reported.cached if reported else self._sequence.cached

    @property
    def reported(self) -> bool:
        """Whether a backend counted the tokens."""
        return self._sequence.reported is not None

    @property
    def sampled(self) -> int:
        """Tokens sampled so far, read or not; final after `aclose`."""
        reported = self._sequence.reported
        return reported.output if reported else self._sequence.generated

    @property
    def ready(self) -> int:
        """The number of tokens that can be read without waiting, of the engine step that sampled the last one read."""
        return len(self._ready)

    def put(self, item: list[Token] | SecateurError | None) -> None:
        """Deliver the tokens of a step, a failure, or None to end the stream; call it within the loop.

        No tokens end it too: those of a reply that was to have none.
        """
        self._items.put_nowait(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        if self._ended:
            raise StopAsyncIteration
        if not self._ready:
            item = await self._items.get()
            if isinstance(item, SecateurError) or not item:
                self._ended = True
                raise StopAsyncIteration if not isinstance(item, SecateurError) else item
            self._ready.extend(item)
        token = self._ready.popleft()
        if token.finish is not None:
            self._ended = True
        return token

    async def aclose(self) -> None:
        """Abort the request; its slot is free within one step. Idempotent."""
        self._abort(self._sequence)
        self._ended = True
        self.put(None)  # wakes a reader in another task


def hand_over(items: Iterable[tuple[Stream, list[Token] | SecateurError]]) -> None:
    """Deliver the results of a step to their streams; called by the engine's thread.

    Wakes each loop once, since every wake-up may cost this thread the interpreter's lock.
    """
    loops = defaultdict(list)
    for stream, item in items:
        loops[stream.loop].append((stream, item))
    for loop, together in loops.items():
        with suppress(RuntimeError):  # the readers' loop is closed
            loop.call_soon_threadsafe(_put, together)


def _put(items: Iterable[tuple[Stream, list[Token] | SecateurError]]) -> None:
    for stream, item in items:
        stream.put(item)
