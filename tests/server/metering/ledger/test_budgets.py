"""Budgets: reservations never exceed a limit, also under concurrent requests and clock changes."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Admission, Limits, Opening, Refusal, Settlement, Spent, Usage

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0


class Clock:
    """A wall clock that somebody moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(where: str, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(where, clock=clock)
    yield ledger
    ledger.close()


def ask(ledger: Ledger, name: str, *, prompt: int = 10, wanted: int = 50, **limits: int) -> Admission:
    return ledger.open(Opening(name, "help", "tiny", prompt, wanted, Limits(**limits))).result()


def end(ledger: Ledger, name: str, admission: Admission, output: int, *, prompt: int = 10) -> None:
    usage = Usage(prompt, 0, output)
    ledger.settle(Settlement(name, usage, "length", "help", admission.day, duration=1.0)).result()


def rows(where: str, columns: str = "request_id, state, outcome, day") -> list[tuple[Any, ...]]:
    with snapshot(where) as database:
        return database.execute(f"SELECT {columns} FROM requests ORDER BY id")


def test_a_reply_gets_what_is_left_and_gives_back_what_it_did_not_use(ledger: Ledger, where: str) -> None:
    first = ask(ledger, "r1", day=100)
    assert (first.granted, first.refused) == (50, None)
    assert ledger.spent()[1] == Spent("help", "2026-11-25", 0, 60)
    second = ask(ledger, "r2", day=100)
    assert second.granted == 30  # 100 - 60 - 10 for its own prompt
    assert ask(ledger, "r3", day=100).refused == Refusal("skill", "day")
    end(ledger, "r1", first, 5)
    assert ledger.spent()[1] == Spent("help", "2026-11-25", 15, 40)
    assert ask(ledger, "r4", day=100).granted == 35
    assert rows(where)[2] == ("r3", "final", "rejected", "2026-11-25")
    assert ledger.totals().requests["help", "tiny", "rejected"] == 1


def test_the_month_refuses_too_and_the_smaller_limit_decides(ledger: Ledger) -> None:
    assert ask(ledger, "r1", day=1000, month=40).granted == 30
    assert ask(ledger, "r2", day=1000, month=40).refused == Refusal("skill", "month")
    assert ask(ledger, "r3", day=65, month=1000).granted == 15
    assert ask(ledger, "r4", day=65, month=1000).refused == Refusal("skill", "day")


def test_200_concurrent_requests_never_overdraw_the_last_1000_tokens(where: str) -> None:
    ledgers = [Ledger(where, instance="a")]
    if where.startswith("postgres"):
        ledgers.append(Ledger(where, instance="b"))
    start = ask(ledgers[0], "before", prompt=9_000, wanted=1, day=10_000)
    end(ledgers[0], "before", start, 0, prompt=9_000)

    def reply(index: int) -> int:
        ledger, draw = ledgers[index % len(ledgers)], random.Random(index)
        admission = ask(ledger, f"r{index}", prompt=5, wanted=draw.randrange(10, 60), day=10_000)
        if admission.refused:
            return 0
        output = admission.granted if draw.random() < 0.7 else draw.randrange(admission.granted)
        end(ledger, f"r{index}", admission, output, prompt=5)
        return 5 + output

    with ThreadPoolExecutor(50) as pool:
        used = sum(pool.map(reply, range(200)))
    spent = ledgers[0].spent()
    for ledger in ledgers:
        ledger.close()
    assert 900 < used <= 1000
    assert [(row.used, row.reserved) for row in spent] == [(9_000 + used, 0)] * 2
    assert sum(row[0] for row in rows(where, "prompt_tokens + output_tokens")) == 9_000 + used


def test_a_clock_that_goes_back_an_hour_counts_no_day_twice(ledger: Ledger, clock: Clock, where: str) -> None:
    clock.now = datetime(2026, 11, 26, 0, 30, tzinfo=UTC).timestamp()
    first = ask(ledger, "r1", day=100, wanted=80)
    clock.now -= HOUR  # it is yesterday again
    end(ledger, "r1", first, 80)
    assert ask(ledger, "r2", day=100, wanted=80).day == "2026-11-25"
    clock.now += HOUR
    assert ask(ledger, "r3", day=100, wanted=80).refused == Refusal("skill", "day")
    with snapshot(where) as database:
        used = database.execute("SELECT period, used FROM budgets WHERE used > 0 ORDER BY period")
    assert used == [("2026-11", 90), ("2026-11-26", 90)]
    assert min(row[0] for row in rows(where, "closed_at - opened_at") if row[0] is not None) >= 0


def test_a_clock_that_goes_forward_a_day_opens_a_new_day_and_splits_no_row(
    ledger: Ledger, clock: Clock, where: str
) -> None:
    first = ask(ledger, "r1", day=100, wanted=90)
    clock.now += DAY
    second = ask(ledger, "r2", day=100, wanted=90)
    end(ledger, "r1", first, 90)
    end(ledger, "r2", second, 20)
    clock.now -= DAY
    assert ask(ledger, "r3", day=100).refused == Refusal("skill", "day")
    with snapshot(where) as database:
        days = database.execute("SELECT period, used, reserved FROM budgets ORDER BY period")
    assert days == [("2026-11", 130, 0), ("2026-11-25", 100, 0), ("2026-11-26", 30, 0)]
    assert [row[0] for row in rows(where, "closed_at - opened_at")] == [1, 1, 0]


def test_rows_recovered_under_a_clock_that_went_back_have_no_negative_duration(where: str, clock: Clock) -> None:
    first = Ledger(where, clock=clock)
    ask(first, "r1", day=100)
    first.count({"r1": Usage(10, 0, 7)}).result()
    first.close()
    clock.now -= DAY
    again = Ledger(where, clock=clock)
    clock.now += DAY
    assert rows(where, "state, closed_at - opened_at, duration_seconds") == [("recovered", 0, 0)]
    assert again.spent() == [Spent("help", "2026-11", 17, 0), Spent("help", "2026-11-25", 17, 0)]
    again.close()


@pytest.mark.parametrize(
    ("moment", "day", "month"),
    [((2026, 11, 25, 12), 12 * 3600, 5 * 86400 + 12 * 3600), ((2026, 12, 31, 23, 59, 59), 1, 1)],
)
def test_until_the_next_period(ledger: Ledger, clock: Clock, moment: tuple[int, ...], day: int, month: int) -> None:
    clock.now = datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]
    assert (ledger.until_next("day"), ledger.until_next("month")) == (day, month)


def test_an_idempotency_key_makes_one_row(ledger: Ledger) -> None:
    def ask_again(name: str) -> Admission:
        return ledger.open(Opening(name, "help", "tiny", 10, 50, idempotency="key")).result()

    assert ask_again("r1").granted == 50
    under_way = ask_again("r2").known
    assert under_way is not None
    assert (under_way.request_id, under_way.outcome) == ("r1", None)
    ledger.settle(Settlement("r1", Usage(10, 0, 3), "stop")).result()
    known = ask_again("r3").known
    assert known is not None
    assert (known.request_id, known.outcome, known.usage) == ("r1", "stop", Usage(10, 0, 3))
    assert ledger.totals().requests == {("help", "tiny", "stop"): 1}
    assert [row.reserved for row in ledger.spent()] == [0, 0]


def test_the_idempotency_key_of_a_refused_request_may_be_reused(ledger: Ledger) -> None:
    for name in ("r1", "r2"):
        assert ledger.open(Opening(name, "help", "tiny", 10, 50, idempotency="key")).result().granted == 50
        ledger.settle(Settlement(name, Usage(), "rejected")).result()
