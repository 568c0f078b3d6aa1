"""Runs a model in one thread of its own, and hands each new token to the asyncio loop that asked for it.

The loop thread only ever waits for the lock, which is never held while the model computes."""

import logging
import threading
import time
from collections.abc import Sequence as Ids
from itertools import groupby

from server.engine.batch import Batch
from server.engine.runners import Runner
from server.engine.sampling.sampler import choose_sampler
from server.engine.scheduler import Scheduler, Taken
from server.engine.sequence import Sampling, Score, Sequence, check
from server.engine.speculation import LookUp
from server.engine.stream import Stream, Token, hand_over
from server.errors import EngineFailed, InvalidRequest

__all__ = ["Engine", "Stream", "Token"]

logger = logging.getLogger(__name__)


class Engine:
    """Serves `slots` sequences at once, each of at most `context` ids, at most `batch_tokens` ids a step."""

    def __init__(
        self,
        runner: Runner,
        *,
        slots: int = 8,
        context: int = 2048,
        batch_tokens: int = 512,
        max_waiting: int = 64,
        look_up: LookUp | None = None,
    ) -> None:
        self.slots = slots
        self.context = context
        self.sampler = choose_sampler()
        self._runner = runner
        self._scheduler = Scheduler(
            slots=slots, context=context, batch_tokens=batch_tokens, max_waiting=max_waiting, look_up=look_up
        )
        self._streams: dict[Sequence, Stream] = {}
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; what was submitted before now begins."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step in progress; every open stream raises EngineFailed."""
        self._fail("The engine was stopped.")
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, prompt: Ids[int], sampling: Sampling, *, skill: str, standing: int = 0) -> Stream:
        """Queue a prompt and return its tokens to come; call it within the asyncio loop that will read them.

        The first `standing` ids are those that every prompt of the skill begins with: they are kept for the next.
        Raises InvalidRequest if it can never fit, Overloaded if the queue is full, EngineFailed after a failure."""
        check(len(prompt), sampling, self.context)
        if max(prompt) >= self._runner.vocabulary:  # a tokenizer that has grown beyond its model
            raise InvalidRequest(
                f"The messages hold the token {max(prompt)}; the model has {self._runner.vocabulary}.", param="messages"
            )
        for id, _ in sampling.logit_bias:
            if id >= self._runner.vocabulary:
                raise InvalidRequest(
                    f"logit_bias names token {id}; there are {self._runner.vocabulary}.", param="logit_bias"
                )
        sequence = Sequence(skill, tuple(prompt), sampling, standing)
        stream = Stream(sequence, self._abort)
        with self._changed:
            if self._failure:
                raise EngineFailed(self._failure)
            self._scheduler.add(sequence)
            self._streams[sequence] = stream
            self._changed.notify()
        return stream

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """How many sequences wait for a slot."""
        return len(self._scheduler.waiting)

    @property
    def kv_used_ratio(self) -> float:
        """The part of the cache that running sequences hold, what they share counted once, 0 to 1."""
        with self._changed:
            return self._scheduler.blocks.held / len(self._scheduler.blocks.holders)

    @property
    def failure(self) -> str | None:
        """Why the engine no longer runs, or None while it does."""
        return self._failure

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._step(batch)
        except Exception:  # whatever it was, no stream may be left hanging
            logger.exception("The engine failed")
            self._fail("The engine failed; the server's log says why.")

    def _next_batch(self) -> Batch | None:
        """Sleep until there is work, then plan it; None once stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._scheduler.idle)
            if self._failure:
                return None
            batch, now = self._scheduler.schedule(), time.monotonic()
        for chunk in batch.chunks:
            chunk.sequence.begun = chunk.sequence.begun or now
        return batch

    def _step(self, batch: Batch) -> None:
        begin = time.monotonic()
        logits = self._runner.forward(batch)
        if any(not chunk.sequence.generated for chunk in batch.chunks):
            self._scheduler.pace.learn(batch.tokens, time.monotonic() - begin)
        tokens = self.sampler.sample(batch, logits)
        scores = self.sampler.scores(batch, logits, tokens)
        with self._changed:
            self._deliver(self._scheduler.commit(batch, tokens), tokens, scores)

    def _deliver(self, taken: Ids[Taken], tokens: Ids[int], scores: Ids[Score | None]) -> None:
        made = []
        for sequence, together in groupby(taken, key=lambda one: one.sequence):
            made.append((self._streams[sequence], [Token(tokens[row], end, scores[row]) for _, row, end in together]))
            if sequence.finish:
                del self._streams[sequence]
        hand_over(made)

    def _abort(self, sequence: Sequence) -> None:
        with self._changed:
            if self._streams.pop(sequence, None) is not None:
                self._scheduler.abort(sequence)

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = self._failure or reason
            for sequence in self._streams:
                self._scheduler.abort(sequence)
            hand_over([(stream, EngineFailed(self._failure)) for stream in self._streams.values()])
            self._streams.clear()
            self._changed.notify_all()
