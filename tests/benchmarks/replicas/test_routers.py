"""What the table of routers counts as cold, and the order of the questions."""

from collections import Counter

from tests.benchmarks.replicas.routers import Load, names_of, row
from tests.benchmarks.serving.loads.load import Target, Timing


def timing(milliseconds: float, cached: int) -> Timing:
    return Timing(5.0, (5.0 + milliseconds / 1000,), 1000, cached, 2)


def test_each_skill_is_asked_as_often_and_no_round_shares_one() -> None:
    load = Load(skills=5, asked=3, words=9)
    rounds = [names_of(policy, number, load) for policy in (0, 1) for number in (0, 1)]
    assert len({name for names in rounds for name in names}) == 20
    order = load.order(rounds[0], seed=1)
    assert set(Counter(order).values()) == {3}
    assert order != load.order(rounds[0], seed=2)


def test_a_row_tells_cold_from_warm() -> None:
    timings = [timing(500, 0), timing(520, 0), timing(510, 32), timing(30, 992), timing(20, 992)]
    assert row(["room", "hash"], timings) == "| room | hash | 5 | 3 | 510 | 25 | 500 | 520 | 316 |"
    assert row(["room", "hash"], timings[3:]) == "| room | hash | 2 | 0 | - | 25 | 20 | 30 | 25 |"


def test_the_skill_is_in_a_header_that_a_router_can_hash() -> None:
    assert b"\r\nx-session-id: help\r\n" in Target(1, "help", session="help").request("Hi", 2)
    assert b"x-session-id" not in Target(1, "help").request("Hi", 2)
