"""The evolutionary search on artificial divergences, without a model."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.recipe.allocation import Search
from pruning.stages.layerwise.allocation.evolution import Assignment, Measure, evolve, mutate, read

OPTIONS = Search(levels=(0.3, 0.4, 0.5, 0.6, 0.7), generations=40, offspring=12)
START = (2,) * 8
TARGET = (0, 1, 4, 2, 2, 3, 4, 0)
PARTS = range(32), range(32, 64)


def distance(assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
    """To the target, with a noise that is smaller on more sequences."""
    noise = [random.Random(f"{assignment}{numbers}").random() / len(numbers) for assignment in assignments]
    gaps = [sum(abs(a - b) for a, b in zip(assignment, TARGET, strict=True)) for assignment in assignments]
    return [gap + extra for gap, extra in zip(gaps, noise, strict=True)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers())
def test_a_child_keeps_the_mean_and_its_levels_exist(parent: list[int], seed: int) -> None:
    child = mutate(tuple(parent), 4, random.Random(seed))
    assert sum(child) == sum(parent)
    assert all(0 <= level <= 3 for level in child)
    assert sum(abs(a - b) for a, b in zip(child, parent, strict=True)) <= 6


def test_it_finds_the_best_assignment_reproducibly(tmp_path: Path) -> None:
    found = evolve(START, OPTIONS, distance, PARTS, tmp_path / "a", 5.0)
    assert found.best == TARGET
    assert found.beats
    assert found.seconds > 5
    again = evolve(START, OPTIONS, distance, PARTS, tmp_path / "b", 5.0)
    assert again.best == found.best
    assert again.divergence == found.divergence
    other = Search(levels=OPTIONS.levels, generations=3, offspring=12, seed=1)
    few = Search(levels=OPTIONS.levels, generations=3, offspring=12)
    bests = [evolve(START, options, distance, PARTS, tmp_path / str(options.seed), 0).best for options in (other, few)]
    assert bests[0] != bests[1]


def test_uniform_is_used_unless_beaten_on_unseen_sequences(tmp_path: Path) -> None:
    def overfitted(assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
        return [(1 if numbers[0] < 32 else -1) * value for value in distance(assignments, numbers)]

    found = evolve(START, OPTIONS, overfitted, PARTS, tmp_path / "a", 0)
    assert found.best != START
    assert not found.beats


def test_a_divergence_that_is_not_finite_never_wins(tmp_path: Path) -> None:
    def broken(assignments: Sequence[Assignment], _: Sequence[int]) -> list[float]:
        return [1.0 if assignment == START else float("nan") for assignment in assignments]

    found = evolve(START, OPTIONS, broken, PARTS, tmp_path / "a", 0)
    assert (found.best, found.beats) == (START, False)
    ruined = evolve(START, OPTIONS, lambda assignments, _: [float("inf")] * len(assignments), PARTS, tmp_path / "b", 0)
    assert read(tmp_path / "b") == ruined
    assert not ruined.beats


def test_a_generation_tries_all_on_few_and_few_on_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def spy(assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
        calls.append((len(assignments), len(numbers)))
        return distance(assignments, numbers)

    options = Search(levels=OPTIONS.levels, generations=1, offspring=16)
    evolve(START, options, spy, PARTS, tmp_path / "a", 0)
    (uniform, all_offspring, quarter, best, last) = calls
    assert (uniform, best, last) == ((1, 32), (1, 32), (2, 32))
    assert all_offspring[0] > 10
    assert (all_offspring[1], quarter) == (2, (all_offspring[0] // 4, 8))


def test_of_several_survivors_the_best_on_all_tokens_wins(tmp_path: Path) -> None:
    whole: dict[Assignment, float] = {}

    def spy(assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
        found = [random.Random(f"{assignment}{len(numbers)}").random() for assignment in assignments]
        if len(numbers) == 32 and numbers[0] < 32:
            whole.update(zip(assignments, found, strict=True))
        return found

    for seed in range(5):
        whole.clear()
        options = Search(levels=OPTIONS.levels, generations=1, offspring=64, seed=seed)
        found = evolve(START, options, spy, PARTS, tmp_path / str(seed), 0)
        assert len(whole) >= 4, "uniform, and at least three children"
        assert (found.best, found.divergence) == min(whole.items(), key=lambda item: item[1])


@pytest.mark.parametrize("when", [1, 2, 9, 30, 121])
def test_a_killed_search_resumes_to_the_same_assignment(tmp_path: Path, when: int) -> None:
    whole = evolve(START, OPTIONS, distance, PARTS, tmp_path / "whole", 0)
    calls: list[int] = []

    def killed(assignments: Sequence[Assignment], numbers: Sequence[int]) -> list[float]:
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return distance(assignments, numbers)

    measure: Measure = killed
    with pytest.raises(KeyboardInterrupt):
        evolve(START, OPTIONS, measure, PARTS, tmp_path / "a", 0)
    calls[:] = [1] * 1000
    found = evolve(START, OPTIONS, measure, PARTS, tmp_path / "a", 0)
    assert (found.best, found.divergence, found.final) == (whole.best, whole.divergence, whole.final)
    assert len(calls) - 1000 <= 1 + 3 * 40 + 1 - max(when - 4, 0), "finished generations were done again"


def test_a_single_block_cannot_be_mutated(tmp_path: Path) -> None:
    found = evolve((2,), OPTIONS, lambda assignments, _: [1.0] * len(assignments), PARTS, tmp_path / "a", 0)
    assert (found.best, found.beats) == ((2,), False)
