"""The simulation against the textbook's formula, and its rules one by one."""

import pytest

from tests.benchmarks.replicas.__main__ import line
from tests.benchmarks.replicas.simulation import (
    Answered,
    Arrival,
    Costs,
    Limits,
    in_turns,
    least_loaded,
    poisson,
    simulate,
)

COSTS = Costs(0.5, {1: 0.1, 4: 0.4})


def test_a_lone_request_takes_its_prefill_and_its_steps() -> None:
    [answered] = simulate(COSTS, [Arrival(3.0, 11)], 1, in_turns)
    assert [answered.first, answered.last] == pytest.approx([0.5, 0.5 + 10 * 0.1])


def test_steps_between_and_beyond_the_measured_ones() -> None:
    assert [COSTS.step(number) for number in (1, 2, 4, 8)] == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_one_slot_is_the_queue_of_the_textbook() -> None:
    """M/D/1 by Pollaczek and Khinchine: the mean wait is rho s / (2 (1 - rho))."""
    service, rate = 1.0, 0.7
    arrivals = poisson(rate, 30_000, 1, seed=3)
    answered = simulate(Costs(service, {1: 0.1}), arrivals, 1, in_turns, Limits(slots=1))
    wait = sum(each.last - service for each in answered) / len(answered)
    assert wait == pytest.approx(rate * service / (2 * (1 - rate)), rel=0.08)


def test_the_least_loaded_replica_is_asked_and_slots_are_kept() -> None:
    together = [Arrival(0.0, 1)] * 4
    assert simulate(COSTS, together, 4, least_loaded) == [Answered(0.5, 0.5)] * 4
    assert [round(a.last, 6) for a in simulate(COSTS, together, 1, least_loaded, Limits(slots=2))] == [
        0.5,
        1.5,
        1.5,
        2.0,
    ]


def test_replicas_that_share_cores_slow_each_other_down() -> None:
    two = [Arrival(0.0, 1), Arrival(0.0, 1)]
    assert [a.last for a in simulate(COSTS, two, 2, in_turns, Limits(cores=1))] == pytest.approx([0.5, 1.0])
    assert [a.last for a in simulate(COSTS, two, 2, in_turns, Limits(cores=2))] == pytest.approx([0.5, 0.5])


def test_a_row_of_the_table_has_percentiles_by_nearest_rank() -> None:
    answered = [Answered(second, 10 * second) for second in (4.0, 1.0, 3.0, 2.0)]
    assert line("four", answered) == "| four | 4 | 2000 | 4000 | 20000 | 40000 |"
