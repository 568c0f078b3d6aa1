"""The admin page's figures against a plain list of what was put in."""

import random
from datetime import UTC, datetime

import pytest

from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Limits, Opening, Settlement, Usage
from server.metering.summary import KeyBudget, _quantile, summarise

NOW = datetime(2026, 12, 1, 0, 30, tzinfo=UTC).timestamp()
DAY = 86400


def replies_of_forty_days(where: str, moment: list[float]) -> list[tuple[str, str, int, float | None]]:
    """Settle 80 replies on random days and leave one open; returns day, skill, tokens and seconds of the settled."""
    ledger, draw = Ledger(where, clock=lambda: moment[0]), random.Random(5)
    plain: list[tuple[str, str, int, float | None]] = []
    for index in range(80):
        moment[0] = NOW - DAY * draw.randrange(40)
        skill, seconds = draw.choice("abc"), draw.uniform(0.1, 9)
        key = draw.choice(("new", "old", ""))
        admission = ledger.open(Opening(f"r{index}", skill, "m", 10, 50, key_id=key)).result()
        usage = Usage(10, 0, draw.randrange(1, 50))
        ledger.settle(Settlement(f"r{index}", usage, "stop", skill, admission.day, seconds, seconds / 4)).result()
        plain.append((admission.day, skill, 10 + usage.output, seconds))
    moment[0] = NOW
    ledger.open(Opening("cut", "a", "m", 10, 50)).result()
    ledger.count({"cut": Usage(10, 0, 5)}).result()
    ledger.close()
    return plain


def test_days_budgets_and_latencies_are_those_of_the_replies(where: str) -> None:
    """Over the end of a month: the day's and the month's budget begin anew, the days before stay as they were."""
    moment = [NOW]
    plain = replies_of_forty_days(where, moment)
    moment[0] += 900  # so long the server is down
    ledger = Ledger(where, clock=lambda: moment[0])
    plain.append(("2026-12-01", "a", 15, None))
    keys: dict[tuple[str, ...], Limits] = {("new", "old"): Limits(month=400)}
    found = summarise(ledger, {"a": Limits(day=1000), "b": Limits(month=500)}, NOW, keys)
    ledger.close()

    assert (found.days[0], found.days[-1], len(found.days)) == ("2026-11-02", "2026-12-01", 30)
    sums: dict[tuple[str, str], int] = {}
    for day, skill, tokens, _ in plain:
        if day in found.days:
            sums[day, skill] = sums.get((day, skill), 0) + tokens
    assert {(use.day, use.skill): use.tokens for use in found.use} == sums
    assert found.total == sum(tokens for _, _, tokens, _ in plain)
    today = sum(tokens for day, skill, tokens, _ in plain if day == "2026-12-01" and skill == "a")
    [budget] = [row for row in found.budgets if (row.skill, row.period) == ("a", "day")]
    assert (budget.used, budget.reserved, budget.limit) == (today, 0, 1000)
    [budget] = [row for row in found.budgets if (row.skill, row.period) == ("b", "month")]
    assert (budget.used, budget.limit) == (sum(t for d, s, t, _ in plain if d[:7] == "2026-12" and s == "b"), 500)
    with snapshot(where) as database:
        statement = "SELECT sum(prompt_tokens + output_tokens) FROM requests WHERE day >= '2026-12' AND key_id <> ''"
        [(by_keys,)] = database.execute(statement)
    assert by_keys
    assert found.key_budgets == [KeyBudget("new", "month", by_keys, 0, 400)]
    # How long a server was down is not how long a reply took.
    assert found.duration.values == pytest.approx(sorted(s for *_, s in plain if s is not None), abs=1e-4)
    assert max(found.duration.quantiles) < 9


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101])
def test_quantiles_are_by_nearest_rank(count: int) -> None:
    values = [float(number) for number in range(count)]
    for q in (0.5, 0.9, 0.99):
        expected = next(value for value in values if sum(other <= value for other in values) >= q * count)
        assert _quantile(values, q) == expected
