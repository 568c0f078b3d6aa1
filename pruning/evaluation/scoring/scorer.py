"""Logits and greedy replies from one of the server's runners; texts with a common prefix share its prefill.

A job is a list of texts with a common prefix. It runs in one slot of the KV cache, where each text continues from the
prefix that it shares with the text before; the jobs of all slots are batched without padding.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from pruning.evaluation.tasks.prompts import Ids
from server.engine.batch import Batch, Chunk
from server.engine.engine import Engine
from server.engine.runners import Options, Scoring
from server.engine.sampling.constraint import Constraint
from server.engine.sequence import Sampling
from server.engine.sequence import Sequence as EngineSequence
from server.errors import EngineFailed

SLOTS = 8
BATCH_TOKENS = 512
"""Tokens after which a batch takes no further text; bounds the memory of the logits."""


class ScoreRequest(NamedTuple):
    """A text whose ids from `first` on are scored; `first` is at least 1, since the first id is never predicted."""

    ids: Ids
    first: int

    @property
    def target(self) -> Ids:
        """The scored ids."""
        return self.ids[self.first :]


Job = Sequence[ScoreRequest]


class Scorer:
    """Scores texts of at most `context` ids with a runner that was made with `runner_options(context)`."""

    def __init__(self, runner: Scoring, context: int) -> None:
        self._runner = runner
        self._context = context
        self._cached: list[Ids] = [()] * SLOTS
        """The ids whose keys and values each slot holds."""

    def logits(self, jobs: Sequence[Job]) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (job index, request index, float32 logits [scored ids, vocabulary]) for each request.

        Row i predicts scored id i. The order depends on `jobs` alone, so two models yield in the same order.
        """
        waiting = deque(enumerate(jobs))
        running: dict[int, deque[tuple[int, int, ScoreRequest]]] = {}
        while waiting or any(running.values()):
            running = {slot: requests for slot, requests in running.items() if requests}
            for slot in range(SLOTS):
                if slot not in running and waiting:
                    job, requests = waiting.popleft()
                    running[slot] = deque((job, number, request) for number, request in enumerate(requests))
            yield from self._run(self._next_batch(running))

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """Natural log-probabilities, float64 [scored ids], for each request of each job; calls `step` after each."""
        results: list[list[Tensor]] = [[torch.empty(0)] * len(job) for job in jobs]
        for job, number, logits in self.logits(jobs):
            results[job][number] = log_likelihood(logits, jobs[job][number].target)
            step()
        return results

    def replies(
        self,
        prompts: Sequence[Ids],
        tokens: int,
        stop_ids: Iterable[int],
        step: Callable[[], None],
        constraints: Sequence[Constraint | None] = (),
    ) -> list[Ids]:
        """Greedy replies of at most `tokens` ids, stop id included, by the engine that serves the model.

        `constraints` says what each reply must match, by default nothing.
        """
        self._cached = [()] * SLOTS
        engine = Engine(self._runner, slots=SLOTS, context=self._context, max_waiting=len(prompts))
        sampling = Sampling(temperature=0, max_tokens=tokens, stop_ids=frozenset(stop_ids))

        async def reply(prompt: Ids, constraint: Constraint | None) -> Ids:
            wanted = replace(sampling, constraint=constraint)
            ids = [token.id async for token in engine.submit(prompt, wanted, skill="evaluation")]
            step()
            return tuple(ids)

        async def all_replies() -> list[Ids]:
            return list(await asyncio.gather(*map(reply, prompts, constraints or [None] * len(prompts))))

        engine.start()
        try:
            return asyncio.run(all_replies())
        finally:
            engine.stop()

    def _next_batch(
        self, running: dict[int, deque[tuple[int, int, ScoreRequest]]]
    ) -> list[tuple[int, int, int, ScoreRequest]]:
        """Take the next request of each slot, up to `BATCH_TOKENS`: slot, job index, request index, request."""
        chosen, tokens = [], 0
        for slot, requests in running.items():
            if tokens >= BATCH_TOKENS:
                break
            job, number, request = requests.popleft()
            chosen.append((slot, job, number, request))
            tokens += len(request.ids) - self._start(slot, request)
        return chosen

    def _run(self, chosen: Sequence[tuple[int, int, int, ScoreRequest]]) -> Iterator[tuple[int, int, Tensor]]:
        """Run one batch and yield the logits of each of its requests."""
        chunks, counts = [], []
        for slot, _, _, request in chosen:
            start, ids = self._start(slot, request), request.ids[:-1]
            chunks.append(Chunk(EngineSequence("evaluation", ids, Sampling()), slot, start, ids[start:], True))
            counts.append(len(request.target))
            self._cached[slot] = ids
        logits = self._runner.last(Batch(tuple(chunks)), counts)
        for (_, job, number, _), rows in zip(chosen, torch.split(logits, counts), strict=True):
            yield job, number, rows

    def _start(self, slot: int, request: ScoreRequest) -> int:
        """The first position to compute: after the cached prefix, but no later than the row that predicts `first`."""
        pairs = zip(self._cached[slot], request.ids, strict=False)
        return min(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), request.first - 1)


def runner_options(context: int) -> Options:
    """The options of a runner that scores texts of at most `context` ids."""
    return Options(slots=SLOTS, context=context, batch_tokens=BATCH_TOKENS + context)


def log_likelihood(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """log softmax of `logits` [n, vocabulary] at `ids` [n], float64 [n]; raises EngineFailed for NaN."""
    result = -nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none").double()
    if bool(result.isnan().any()):
        raise EngineFailed("the model computes NaN: its weights are damaged, or overflow their type")
    return result
