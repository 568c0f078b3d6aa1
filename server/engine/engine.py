"""Runs a model in its own thread, and streams tokens to the asyncio loops that submitted requests.

A loop waits at most for the lock, which is never held while the model computes."""

import logging
import threading
import time
from collections.abc import Sequence as Ids
from itertools import groupby
from typing import Protocol

from msgspec.structs import replace

from server.engine.batch import Batch
from server.engine.blocks import Blocks
from server.engine.runners import Runner
from server.engine.sampling.masks import masks
from server.engine.sampling.prompt import prompt_logprobs, sampled_rows
from server.engine.sampling.sampler import choose_sampler
from server.engine.scheduling.scheduler import Accepted, Scheduler
from server.engine.scheduling.speculation import PromptLookup
from server.engine.sequence import Logprobs, Sampling, Sequence, check
from server.engine.stream import Stream, Token, hand_over
from server.errors import EngineFailed, InvalidRequest

__all__ = ["Engine", "Stream", "Token"]

logger = logging.getLogger(__name__)


class Prefixes(Protocol):
    """Keeps skills' shared prefixes over restarts."""

    def restore(self, blocks: Blocks) -> int:
        """Put what was kept into the cache; returns the number of blocks."""
        ...

    def keep(self, sequence: Sequence, blocks: Blocks) -> None:
        """Keep a sequence's shared prefix, if it is computed and not kept yet."""

    def close(self) -> None:
        """Finish what is being written."""


class Engine:
    """Serves `slots` sequences at once, each of at most `context` ids, with at most `batch_tokens` ids in a pass."""

    def __init__(
        self,
        runner: Runner,
        *,
        slots: int = 8,
        context: int = 2048,
        batch_tokens: int = 512,
        max_waiting: int = 64,
        look_up: PromptLookup | None = None,
    ) -> None:
        self.context = context
        self.text = False
        """Replies are token ids."""
        self.sampler = choose_sampler()
        self._runner = runner
        self.prefixes: Prefixes | None = None
        """Keeps skills' shared prefixes over restarts; set it before `start`."""
        self._scheduler = Scheduler(
            slots=slots, context=context, batch_tokens=batch_tokens, max_waiting=max_waiting, look_up=look_up
        )
        self._streams: dict[Sequence, Stream] = {}
        self._failure: str | None = None
        self.forced_tokens = 0
        """Output tokens that grammars forced, so that no row was sampled for them."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, with the prefixes of an earlier start; requests submitted before begin now."""
        if self.prefixes:
            self.prefixes.restore(self._scheduler.blocks)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step; every open stream raises EngineFailed."""
        self._fail("The engine was stopped.")
        if self._thread.is_alive():
            self._thread.join()
        if self.prefixes:
            self.prefixes.close()

    def submit(
        self, prompt: Ids[int], sampling: Sampling, *, skill: str, shared_prefix: int = 0, cache_salt: str = ""
    ) -> Stream:
        """`submit_together` for one sequence."""
        sequence = Sequence(skill, tuple(prompt), sampling, shared_prefix=shared_prefix, cache_salt=cache_salt)
        return self.submit_together([sequence])[0]

    def submit_together(self, sequences: Ids[Sequence]) -> list[Stream]:
        """Queue the sequences of one request, all or none, and return the stream of each.

        Call it within the asyncio loop that will read them. Raises InvalidRequest if one can never fit, Overloaded if
        the queue is full, EngineFailed after a failure.
        """
        for sequence in sequences:
            self._check(sequence)
        streams = [Stream(sequence, self._abort) for sequence in sequences]
        with self._changed:
            if self._failure:
                raise EngineFailed(self._failure)
            self._scheduler.add(*sequences)
            self._streams.update(zip(sequences, streams, strict=True))
            self._changed.notify()
        return streams

    def check_options(self, sampling: Sampling) -> None:
        """Nothing: every option is supported."""

    def _check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for a sequence that can never fit, or whose ids the model lacks."""
        prompt, sampling = sequence.prompt, sequence.sampling
        check(len(prompt), sampling, self.context)
        vocabulary = self._runner.vocabulary
        if max(prompt) >= vocabulary:  # a tokenizer that has grown beyond its model
            raise InvalidRequest(
                f"The messages contain token {max(prompt)}; the model's vocabulary has {vocabulary} tokens.",
                param="messages",
            )
        named = {"logit_bias": [id for id, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
        for option, ids in named.items():
            if max(ids, default=0) >= vocabulary:
                raise InvalidRequest(
                    f"{option} contains token {max(ids)}; the model's vocabulary has {vocabulary} tokens.",
                    param=option,
                )
        known = frozenset(id for id in sampling.stop_ids if id < vocabulary)
        sequence.sampling = replace(sampling, stop_ids=known)  # a pruned vocabulary may lack some of the tokenizer's

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return self._runner.vocabulary

    @property
    def running(self) -> int:
        """The number of sequences with a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._scheduler.waiting)

    @property
    def kv_used_ratio(self) -> float:
        """The fraction of cache blocks that running sequences hold, 0 to 1."""
        with self._changed:
            return self._scheduler.blocks.held / len(self._scheduler.blocks.holders)

    @property
    def cache_blocks(self) -> int:
        """The number of blocks of the KV cache."""
        return len(self._scheduler.blocks.holders)

    @property
    def failure(self) -> str | None:
        """Why the engine stopped, or None while it runs."""
        return self._failure

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._step(batch)
        except Exception:  # no stream may be left hanging
            logger.exception("The engine failed")
            self._fail("The engine failed; the server's log says why.")

    def _next_batch(self) -> Batch | None:
        """Sleep until there is work, then plan a pass; None once stopped."""
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
            self._scheduler.prefill_budget.record(batch.tokens, time.monotonic() - begin)
        rows = sampled_rows(batch, logits)
        tokens = self.sampler.sample(batch, rows, masks(batch, self._runner.vocabulary))
        logprobs = self.sampler.logprobs(batch, rows, tokens)
        scored = list(prompt_logprobs(batch, logits, self.sampler.row_logprobs))
        with self._changed:
            for chunk, of_prompt in scored:
                chunk.sequence.prompt_logprobs.extend(of_prompt)
            self._end_failed(batch)
            self._deliver(self._scheduler.commit(batch, tokens), logprobs)
            if self.prefixes:
                for chunk in batch.chunks:
                    self.prefixes.keep(chunk.sequence, self._scheduler.blocks)
            self._end_unsampled(batch)

    def _deliver(self, accepted: Ids[Accepted], logprobs: Ids[Logprobs | None]) -> None:
        self.forced_tokens += sum(one.row is None for one in accepted)
        results = []
        for sequence, ids in groupby(accepted, key=lambda one: one.sequence):
            reply = [
                Token(token, finish, None if row is None else logprobs[row], complete)
                for _, token, row, finish, complete in ids
            ]
            results.append((self._streams[sequence], reply))
            if sequence.finish:
                del self._streams[sequence]
        hand_over(results)

    def _end_failed(self, batch: Batch) -> None:
        """End the streams of sequences whose grammar became too complex; what was sampled for them is dropped."""
        for chunk in batch.chunks:
            state = chunk.sequence.constraint
            if state and state.failure and (stream := self._streams.pop(chunk.sequence, None)):
                self._scheduler.abort(chunk.sequence)
                hand_over([(stream, state.error)])

    def _end_unsampled(self, batch: Batch) -> None:
        """End the streams of sequences that finished without a token, since `max_tokens` is 0."""
        for chunk in batch.chunks:
            if chunk.sequence.finish and (stream := self._streams.pop(chunk.sequence, None)):
                hand_over([(stream, [])])

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
