"""The evolution of a mixture of levels: some blocks go up a level, as many go down, and the best of many such stays.

Sieberling et al., EvoPress: Accurate Dynamic Model Compression via Evolutionary Search,
https://arxiv.org/abs/2410.14649, algorithm 1. Deliberate differences: (1) a survivor must beat its parent on one fixed
set of tokens, not on a fresh one; (2) the result must beat the uniform mixture on tokens that the search never saw, or
uniform it is. Knows nothing of models: a mixture is a tuple of numbers.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

import msgspec

from pruning.progress import Progress
from pruning.recipe.allocation import Search
from pruning.recipe.bounds import WORST, finite
from server.storage.files import write_atomically

Mixture = tuple[int, ...]
"""The level of each block; 0 removes least."""
Measure = Callable[[Sequence[Mixture], Sequence[int]], list[float]]
"""How far each mixture is from the dense model on the sequences of these numbers; lower is better."""

SHARES = (16, 4)
"""All offspring are tried on 1/16 of the tokens, the best quarter on 1/4, the best of those on all."""
MOST_SWITCHES = 3


class Evolution(msgspec.Struct, frozen=True):
    """Where a search stands, or how it ended; each generation is written, so that a killed one goes on."""

    generation: int
    best: Mixture
    divergence: float
    """Of the best, on the tokens of the search."""
    seconds: float
    final: tuple[float, float] | None = None
    """On tokens that the search never saw: of the uniform mixture, and of the best; None until the search is over."""

    @property
    def beats(self) -> bool:
        """Whether the best beats the uniform mixture on those tokens."""
        return self.final is not None and self.final[1] < self.final[0]


def evolve(
    start: Mixture, options: Search, measure: Measure, sequences: tuple[range, range], file: Path, spent: float
) -> Evolution:
    """Search from the uniform mixture `start`, on the first of `sequences`; the second are for the last comparison.

    `spent` are the seconds before it.
    """
    pool, unseen = sequences
    state = read(file)
    if state is None:
        began = monotonic()
        state = Evolution(0, start, finite(measure([start], pool)[0]), spent + monotonic() - began)
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


def read(file: Path) -> Evolution | None:
    """What `evolve` has kept in `file`."""
    return msgspec.json.decode(file.read_bytes(), type=Evolution) if file.exists() else None


def mutate(parent: Mixture, levels: int, choose: random.Random) -> Mixture:
    """A child with one to three pairs of blocks, one up a level and one down, so that the sum stays."""
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


def _generation(state: Evolution, options: Search, measure: Measure, pool: range) -> Evolution:
    """The state after one generation more; its choices depend on the seed and its number alone."""
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
    return Evolution(
        state.generation + 1,
        best if better else state.best,
        divergence if better else state.divergence,
        state.seconds + monotonic() - began,
    )


def _write(file: Path, state: Evolution) -> None:
    """Keep the state."""
    write_atomically(file, json.dumps(msgspec.to_builtins(state)).encode())
