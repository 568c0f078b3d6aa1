"""Serves sequences on backends that speak vLLM's token protocol, behind the interface of `Engine`.

Only ids that arrived are sampled ids: they are counted, and nothing that a backend computed beyond them. A request is
tried again on another backend as long as it has no id. A backend that fails ends its replies, never this engine.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from collections.abc import Sequence as Ids
from contextlib import aclosing, suppress

import msgspec
from msgspec import Struct

from server.engine.remote import token_protocol as wire
from server.engine.remote.backends import Backend, Backends
from server.engine.remote.http_stream import Broken, RefusedByBackend, events, post
from server.engine.scheduling.fairness import next_waiting
from server.engine.sequence import Sampling, Sequence, check
from server.engine.stream import Stream, Token, hand_over
from server.errors import EngineFailed, InvalidRequest, Overloaded, SecateurError

logger = logging.getLogger(__name__)


class Sizes(Struct, frozen=True):
    """What a remote engine serves, and how long it waits."""

    model: str
    """The backends' name of the model."""
    context: int
    vocabulary: int
    replies: int = 64
    """Sequences at once, over all backends."""
    max_waiting: int = 64
    first_token_seconds: float = 60.0
    token_seconds: float = 30.0
    """The longest silence between tokens."""
    share_prefixes: bool = False
    """Whether callers of a skill share the backends' prefix cache."""


class RemoteEngine:
    """Belongs to the asyncio loop that submits; other threads may read the gauges, and stop it."""

    def __init__(self, backends: Backends, sizes: Sizes) -> None:
        self.context = sizes.context
        self.vocabulary = sizes.vocabulary
        self.forced_tokens = 0
        self.backends = backends
        self._sizes = sizes
        self._waiting: deque[tuple[Sequence, Stream]] = deque()
        self._running: dict[Sequence, asyncio.Task[None]] = {}
        self._streams: dict[Sequence, Stream] = {}
        self._aborting: set[asyncio.Task[None]] = set()
        self._failure: str | None = None

    def start(self) -> None:
        """Begin to probe the backends."""
        self.backends.start()

    def stop(self) -> None:
        """Every open stream raises EngineFailed, and its request ends at the backend."""
        self._failure = self._failure or "The engine was stopped."
        for sequence, stream in list(self._streams.items()):
            hand_over([(stream, EngineFailed(self._failure))])
            with suppress(RuntimeError):  # the readers' loop is closed
                stream.loop.call_soon_threadsafe(self._abort, sequence)
        self.backends.stop()

    @property
    def running(self) -> int:
        """The number of sequences on a backend."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The number of sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_used_ratio(self) -> float:
        """The share of the fullest backend's cache in use, 0 to 1."""
        return max(backend.kv_used_ratio for backend in self.backends.all)

    @property
    def cache_blocks(self) -> int:
        """0: the backends tell of their own caches."""
        return 0

    @property
    def failure(self) -> str | None:
        """Why the engine stopped, or None: backends that fail come back."""
        return self._failure

    def submit(
        self, prompt: Ids[int], sampling: Sampling, *, skill: str, shared_prefix: int = 0, cache_salt: str = ""
    ) -> Stream:
        """`submit_together` for one sequence."""
        sequence = Sequence(skill, tuple(prompt), sampling, shared_prefix=shared_prefix, cache_salt=cache_salt)
        return self.submit_together([sequence])[0]

    def submit_together(self, sequences: Ids[Sequence]) -> list[Stream]:
        """Queue the sequences of one request, all or none, and return the stream of each.

        Raises InvalidRequest for what can never be served, Overloaded if the queue is full, EngineFailed once stopped.
        """
        for sequence in sequences:
            _check(sequence, self.context, self.vocabulary)
        if self._failure:
            raise EngineFailed(self._failure)
        if len(self._waiting) >= self._sizes.max_waiting + self._sizes.replies - len(self._running):
            rounds = 1 + len(self._waiting) // self._sizes.replies
            raise Overloaded(f"{len(self._waiting)} requests are already waiting; try again later.", retry_after=rounds)
        streams = [Stream(sequence, self._abort) for sequence in sequences]
        pairs = list(zip(sequences, streams, strict=True))
        self._streams.update(pairs)
        self._waiting.extend(pairs)
        self._fill()
        return streams

    def _fill(self) -> None:
        """Start what waits while there is room."""
        while self._waiting and len(self._running) < self._sizes.replies and not self._failure:
            running = (one.skill for one in self._running)
            sequence, stream = pair = next_waiting(self._waiting, running, lambda waiting: waiting[0].skill)
            self._waiting.remove(pair)
            sequence.begun = time.monotonic()
            self._running[sequence] = asyncio.get_running_loop().create_task(self._run(sequence, stream))

    def _abort(self, sequence: Sequence) -> None:
        """Drop a sequence, queued or running; idempotent."""
        self._streams.pop(sequence, None)
        if task := self._running.get(sequence):
            task.cancel()
        self._waiting = deque(pair for pair in self._waiting if pair[0] is not sequence)

    async def _run(self, sequence: Sequence, stream: Stream) -> None:
        try:
            await self._generate(sequence, stream)
        except SecateurError as error:
            stream.put(error)
        except Exception as error:
            logger.exception("A remote reply failed: %s", type(error).__name__)
            stream.put(EngineFailed("The engine failed; the server's log says why."))
        finally:
            del self._running[sequence]
            self._streams.pop(sequence, None)
            self._fill()

    async def _generate(self, sequence: Sequence, stream: Stream) -> None:
        """Deliver a reply, trying backends until one has begun it; raises SecateurError."""
        prefix = wire.salt_of(sequence, alone=not self._sizes.share_prefixes)
        tried: frozenset[Backend] = frozenset()
        while True:
            backend = self.backends.choose(prefix, tried)
            try:
                with backend.using():
                    await self._deliver(backend, sequence, stream, prefix)
                return
            except RefusedByBackend as refused:
                logger.error("The backend %s refused a request: %s", backend.target.url, refused)
                raise EngineFailed(f"The model's backend refused the request with {refused}.") from None
            except Broken as broken:
                backend.failed(str(broken))
                if sequence.generated:
                    raise EngineFailed(
                        f"The model's backend failed after {sequence.generated} tokens; the reply ends there."
                    ) from None
            tried |= {backend}

    async def _deliver(self, backend: Backend, sequence: Sequence, stream: Stream, salt: str) -> None:
        """Put what one backend generates; raises Broken and RefusedByBackend."""
        name, body = wire.request_of(sequence, self._sizes.model, salt)
        try:
            async with aclosing(events(backend.target, wire.GENERATE, body)) as data:
                while (choice := await self._next(data, sequence)) is not None:
                    if tokens := _appended(sequence, choice):
                        stream.put(tokens)
                    if sequence.finish:
                        return
            raise Broken("its reply ended without a reason")
        except asyncio.CancelledError:
            self._soon(_abort_at(backend, name))
            raise

    async def _next(self, data: AsyncGenerator[bytes, None], sequence: Sequence) -> wire.ChunkChoice | None:
        """The next chunk of a reply, or None at its end; raises Broken."""
        seconds = self._sizes.token_seconds if sequence.generated else self._sizes.first_token_seconds
        while True:
            try:
                async with asyncio.timeout(seconds):
                    event = await anext(data, wire.DONE)
            except TimeoutError:
                raise Broken(f"no token within {seconds:g} s") from None
            if event == wire.DONE:
                return None
            try:
                chunk = wire.CHUNK.decode(event)
            except msgspec.DecodeError:
                raise Broken("its events are not those of the token protocol") from None
            if chunk.error is not None:
                raise Broken("it reported an error")
            if chunk.choices:
                return chunk.choices[0]

    def _soon(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)


async def _abort_at(backend: Backend, name: str) -> None:
    """End a request; the closed connection does too, unless a proxy holds it open."""
    with suppress(Broken, RefusedByBackend):
        await post(backend.target, wire.ABORT, wire.abort_of(name))


def _appended(sequence: Sequence, choice: wire.ChunkChoice) -> list[Token]:
    """Append the ids of a chunk up to the end of the reply; raises Broken for what no reply may have."""
    tokens = []
    scores = wire.logprobs_of(choice, sequence.sampling.logprobs)
    if len(scores) != len(choice.token_ids or ()):
        raise Broken("its log probabilities are not those of its tokens")
    for id, score in zip(choice.token_ids or (), scores, strict=True):
        sequence.append(id)
        tokens.append(Token(id, sequence.finish, score))
        if sequence.finish:
            return tokens
    if choice.finish_reason in ("stop", "length", "repetition"):  # sooner than asked, as with a shorter context
        sequence.finish = "length"
        if tokens:
            return [*tokens[:-1], tokens[-1]._replace(finish="length")]
        raise Broken(f"its reply ended as {choice.finish_reason}, sooner than asked")
    if choice.finish_reason is not None:
        raise Broken(f"its reply ended as {choice.finish_reason}")
    return tokens


def _check(sequence: Sequence, context: int, vocabulary: int) -> None:
    """Raise InvalidRequest for a sequence that a remote engine can never serve."""
    sampling = sequence.sampling
    check(len(sequence.prompt), sampling, context)
    if (highest := max(sequence.prompt)) >= vocabulary:
        raise InvalidRequest(
            f"The messages contain token {highest}; the model's vocabulary has {vocabulary} tokens.", param="messages"
        )
    refused = {
        "response_format, tools or another grammar": sampling.constraint is not None,
        "prompt_logprobs": sampling.prompt_logprobs is not None,
        "max_tokens of 0": sampling.max_tokens == 0,
    }
    for what, asked in refused.items():
        if asked:
            raise InvalidRequest(
                f"This skill's model runs on a remote engine, which does not support {what}: leave it out.",
                param=what.split()[0].rstrip(","),
                code="unsupported_by_engine",
            )
    named = {"logit_bias": [id for id, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
    for option, ids in named.items():
        if max(ids, default=0) >= vocabulary:
            raise InvalidRequest(
                f"{option} contains token {max(ids)}; the model's vocabulary has {vocabulary} tokens.", param=option
            )
    known = frozenset(id for id in sampling.stop_ids if id < vocabulary)
    sequence.sampling = msgspec.structs.replace(sampling, stop_ids=known)
