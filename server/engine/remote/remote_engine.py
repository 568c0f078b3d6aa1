"""Serves sequences on backends, behind the interface of `Engine`: queues them and chooses a backend for each.

Retries a request on another backend until the first token of its reply. A backend that fails ends its own replies,
never this engine.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids
from contextlib import suppress

from server.engine.remote.backends import Backend, Backends
from server.engine.remote.http_stream import Broken, RefusedByBackend
from server.engine.remote.token_protocol import TokenProtocol
from server.engine.remote.wire import Sizes, WireProtocol
from server.engine.scheduling.fairness import guest_places, next_waiting
from server.engine.sequence import Sampling, Sequence
from server.engine.stream import Stream, hand_over
from server.errors import EngineFailed, Overloaded, SecateurError

__all__ = ["RemoteEngine", "Sizes"]

logger = logging.getLogger(__name__)


class RemoteEngine:
    """Belongs to the asyncio loop that submits; other threads may read the gauges, and stop it."""

    def __init__(
        self, backends: Backends, sizes: Sizes, protocol: Callable[[Sizes], WireProtocol] = TokenProtocol
    ) -> None:
        self.context = sizes.context
        self.vocabulary = sizes.vocabulary
        self.forced_tokens = 0
        self.backends = backends
        self.protocol = protocol(sizes)
        self.text = self.protocol.text
        self._sizes = sizes
        self._waiting: deque[tuple[Sequence, Stream]] = deque()
        self._running: dict[Sequence, asyncio.Task[None]] = {}
        self._streams: dict[Sequence, Stream] = {}
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

    def check_options(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for an option that the backends do not support."""
        self.protocol.check(Sequence("", (0,), sampling))

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
            self.protocol.check(sequence)
        if self._failure:
            raise EngineFailed(self._failure)
        if len(self._waiting) >= self._sizes.max_waiting + max(self._sizes.replies - len(self._running), 0):
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
        replies = self._sizes.replies
        while self._waiting and len(self._running) < replies + guest_places(replies) and not self._failure:
            running = (one.skill for one in self._running)
            pair = next_waiting(self._waiting, running, lambda waiting: waiting[0].skill, replies)
            if pair is None:
                return
            sequence, stream = pair
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
        prefix = self.protocol.prefix(sequence)
        tried: frozenset[Backend] = frozenset()
        while True:
            backend = self.backends.choose(prefix, tried)
            try:
                with backend.using():
                    await self.protocol.deliver(backend, sequence, stream)
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
