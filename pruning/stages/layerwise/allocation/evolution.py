"""Evolutionary search for the sparsity level of each block, at constant mean: mutate, select, repeat.

Sieberling et al., EvoPress: Accurate Dynamic Model Compression via Evolutionary Search,
https://arxiv.org/abs/2410.14649, algorithm 1. Deliberate differences: (1) a survivor must beat its parent on one fixed
set of tokens, not on a fresh one; (2) the result must beat the uniform assignment on tokens that the search never saw,
or the uniform one is used. Knows nothing of models: an assignment is a tuple of numbers.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

import msgspec

from pruning.recipe.allocation import Search
from pruning.recipe.bounds import WORST, finite
from server.progress import Progress
from server.storage.files import write_atomically

Assignment = tuple[int, ...]
"""The level of each block, an index into the sorted levels; 0 removes least."""
Measure = Callable[[Sequence[Assignment], Sequence[int]], list[float]]
"""Divergence of each assignment from the dense model on the sequences with these numbers; lower is better."""

SHARES = (16, 4)
"""Selection in rounds: all offspring on 1/16 of the tokens, the best quarter on 1/4, the best of those on all."""
MOST_SWITCHES = 3
"""Most pairs of blocks that a mutation changes."""


class SearchState(msgspec.Struct, frozen=True):
    """The state of a search, journalled after each generation."""

    generation: int
    best: Assignment
    divergence: float
    """Of the best assignment, on the tokens of the search; nats per token."""
    seconds: float
    final: tuple[float, float] | None = None
    """Divergence of the uniform and of the best assignment on unseen tokens; None until the search is over."""

    @property
    def beats(self) -> bool:
        """Whether the best assignment beats the uniform one on unseen tokens."""
        return self.final is not None and self.final[1] < self.final[0]


def evolve(
    start: Assignment, options: Search, measure: Measure, sequences: tuple[range, range], file: Path, spent: float
) -> SearchState:
    """Search from the uniform assignment `start`, resuming from `file`; returns the final state.

    `sequences` are two ranges of sequence numbers: to search on, and, unseen, for the final comparison. `spent` is the
    time of the pruning before the search in seconds, which the state's total includes.
    """
    pool, unseen = sequences
    state = read(file)
    if state is None:
        began = monotonic()
        state = SearchState(0, start, finite(measure([start], pool)[0]), spent + monotonic() - began)
    with Progress("searching levels", options.generations, state.generation) as progress:
        while state.generation < options.generations:
            state = _generation(state, options, measure, pool)
            _write(file, state)
            progress.step()
    if state.final is None:
        began = monotonic()
        uniform, best = map(finite, measure([start, state.best], unseen))
        seconds = state.seconds + monotonic() - began
        state = msgspec.structs.replace(state, final=(uniform, best), seconds=seconds)
        _write(file, state)
    return state


def read(file: Path) -> SearchState | None:
    """The state journalled in `file`, or None."""
    return msgspec.json.decode(file.read_bytes(), type=SearchState) if file.exists() else None


def mutate(parent: Assignment, levels: int, choose: random.Random) -> Assignment:
    """A child with one to three pairs of blocks changed, one up a level and one down; the sum of levels is constant."""
    child = list(parent)
    for _ in range(min(choose.randint(1, MOST_SWITCHES), choose.randint(1, MOST_SWITCHES))):
        up = [index for index, level in enumerate(child) if level < levels - 1]
        raised = choose.choice(up) if up else None
        down = [index for index, level in enumerate(child) if level > 0 and index != raised]
        if raised is None or not down:
            break
        child[raised] += 1
        child[choose.choice(down)] -= 1
    return tuple(child)


def _generation(state: SearchState, options: Search, measure: Measure, pool: range) -> SearchState:
    """The state after the next generation; its random choices depend on the seed and the generation's number alone."""
    began = monotonic()
    choose = random.Random(f"{options.seed}, {state.generation}")
    tries = (mutate(state.best, len(options.levels), choose) for _ in range(options.offspring))
    children = [child for child in dict.fromkeys(tries) if child != state.best]
    for share in SHARES:
        part = sorted(choose.sample(pool, max(len(pool) // share, 1)))
        scores = measure(children, part) if len(children) > 1 else [0.0]
        ranked = sorted(zip(map(finite, scores), children, strict=False))
        children = [child for _, child in ranked[: max(len(children) // 4, 1)]]
    measured = zip(map(finite, measure(children, pool)), children, strict=True) if children else ()
    divergence, best = min(measured, default=(WORST, state.best))
    better = divergence < state.divergence
    return SearchState(
        state.generation + 1,
        best if better else state.best,
        divergence if better else state.divergence,
        state.seconds + monotonic() - began,
    )


def _write(file: Path, state: SearchState) -> None:
    """Journal the state."""
    write_atomically(file, json.dumps(msgspec.to_builtins(state)).encode())
