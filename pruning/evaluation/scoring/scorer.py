"""Logits and greedy replies from one of the server's runners: what several texts have in common is computed once.

A job is a list of texts that begin alike. Each job runs in one slot of the runner's cache, where a text goes on from
what it shares with the one before; several jobs are in one batch, without padding.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.evaluation.tasks.prompts import Ids
from server.engine.batch import Batch, Chunk
from server.engine.engine import Engine
from server.engine.runners import Options, Scoring
from server.engine.sequence import Sampling
from server.engine.sequence import Sequence as Served
from server.errors import EngineFailed

SLOTS = 8
BATCH_TOKENS = 512
"""A batch takes no further text once it has so many tokens, which bounds the memory of logits."""


class Request(NamedTuple):
    """A text, of which the ids from `first` on are scored; at least one id stands before."""

    ids: Ids
    first: int

    @property
    def wanted(self) -> Ids:
        """The ids that are scored."""
        return self.ids[self.first :]


Job = Sequence[Request]


class Scorer:
    """Scores texts of at most `context` ids with a runner that was made with `options(context)`."""

    def __init__(self, runner: Scoring, context: int) -> None:
        self._runner = runner
        self._context = context
        self._held: list[Ids] = [()] * SLOTS
        """The ids whose keys and values lie in each slot."""

    def logits(self, jobs: Sequence[Job]) -> Iterator[tuple[int, int, Tensor]]:
        """For each request of each job, in an order that depends on `jobs` only: both indices, and the float32 logits

        [ids scored, vocabulary] that predict its ids from `first` on.
        """
        waiting = deque(enumerate(jobs))
        running: dict[int, deque[tuple[int, int, Request]]] = {}
        while waiting or any(running.values()):
            running = {slot: requests for slot, requests in running.items() if requests}
            for slot in range(SLOTS):
                if slot not in running and waiting:
                    job, requests = waiting.popleft()
                    running[slot] = deque((job, number, request) for number, request in enumerate(requests))
            yield from self._run(self._next(running))

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """log p of each scored id, float64 [ids scored], for each request of each job."""
        results: list[list[Tensor]] = [[torch.empty(0)] * len(job) for job in jobs]
        for job, number, logits in self.logits(jobs):
            results[job][number] = log_likelihood(logits, jobs[job][number].wanted)
            step()
        return results

    def replies(
        self, prompts: Sequence[Ids], tokens: int, stop_ids: Iterable[int], step: Callable[[], None]
    ) -> list[Ids]:
        """Greedy replies of at most `tokens` ids, the stop id included, made by the engine as it serves."""
        self._held = [()] * SLOTS
        engine = Engine(self._runner, slots=SLOTS, context=self._context, max_waiting=len(prompts))
        sampling = Sampling(temperature=0, max_tokens=tokens, stop_ids=frozenset(stop_ids))

        async def reply(prompt: Ids) -> Ids:
            ids = [token.id async for token in engine.submit(prompt, sampling, skill="evaluation")]
            step()
            return tuple(ids)

        async def all_replies() -> list[Ids]:
            return list(await asyncio.gather(*map(reply, prompts)))

        engine.start()
        try:
            return asyncio.run(all_replies())
        finally:
            engine.stop()

    def _next(self, running: dict[int, deque[tuple[int, int, Request]]]) -> list[tuple[int, int, int, Request]]:
        """The slots' next requests that fit one batch: slot, job, number, request."""
        chosen, tokens = [], 0
        for slot, requests in running.items():
            if tokens >= BATCH_TOKENS:
                break
            job, number, request = requests.popleft()
            chosen.append((slot, job, number, request))
            tokens += len(request.ids) - self._start(slot, request)
        return chosen

    def _run(self, chosen: Sequence[tuple[int, int, int, Request]]) -> Iterator[tuple[int, int, Tensor]]:
        """Compute one batch."""
        chunks, counts = [], []
        for slot, _, _, request in chosen:
            start, ids = self._start(slot, request), request.ids[:-1]
            chunks.append(Chunk(Served("evaluation", ids, Sampling()), slot, start, ids[start:], True))
            counts.append(len(request.wanted))
            self._held[slot] = ids
        logits = self._runner.last(Batch(tuple(chunks)), counts)
        for (_, job, number, _), rows in zip(chosen, torch.split(logits, counts), strict=True):
            yield job, number, rows

    def _start(self, slot: int, request: Request) -> int:
        """The first position that has to be computed: after what the slot holds of the text, before what is scored."""
        pairs = zip(self._held[slot], request.ids, strict=False)
        return min(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), request.first - 1)


def options(context: int) -> Options:
    """What a runner needs to score texts of at most `context` ids."""
    return Options(slots=SLOTS, context=context, batch_tokens=BATCH_TOKENS + context)


def log_likelihood(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """log softmax of `logits` [n, vocabulary] at `ids` [n], float64; raises EngineFailed for NaN."""
    result = -nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none").double()
    if bool(result.isnan().any()):
        raise EngineFailed("the model computes NaN: its weights are damaged, or overflow their type")
    return result
