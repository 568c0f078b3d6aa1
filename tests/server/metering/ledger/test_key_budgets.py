"""Budgets of API keys beside those of skills: exact over replicas, shared by rotated keys, and counted since before."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from server.errors import ConfigError
from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Admission, Limits, Opening, Refusal, Settlement, Spent, Usage
from server.metering.reconcile import differences
from server.metering.usage import EVER, grouped
from server.storage.connection import connect
from server.storage.database import Options

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
DAY, MONTH = "2026-11-25", "2026-11"
ALICE, BOB, SUCCESSOR = "a" * 12, "b" * 12, "c" * 12


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    ledger = Ledger(where, clock=lambda: NOON)
    yield ledger
    ledger.close()


def ask(ledger: Ledger, name: str, key: str, limits: Limits, family: tuple[str, ...] = ()) -> Admission:
    opening = Opening(name, "help", "tiny", 10, 50, Limits(day=1000), key_id=key, key_limits=limits, key_ids=family)
    return ledger.open(opening).result()


def end(ledger: Ledger, name: str, key: str, output: int) -> None:
    ledger.settle(Settlement(name, Usage(10, 0, output), "stop", "help", DAY, 1.0, key_id=key)).result()


def test_a_key_gets_what_its_budget_has_left_and_other_keys_are_not_touched(ledger: Ledger, where: str) -> None:
    first = ask(ledger, "r1", ALICE, Limits(day=100))
    assert first.granted == 50
    assert ledger.spent("key") == [Spent(ALICE, MONTH, 0, 60), Spent(ALICE, DAY, 0, 60)]
    assert ask(ledger, "r2", ALICE, Limits(day=100)).granted == 30
    assert ask(ledger, "r3", ALICE, Limits(day=100)).refused == Refusal("key", "day")
    assert ask(ledger, "r4", BOB, Limits(day=100)).granted == 50
    end(ledger, "r1", ALICE, 5)
    assert ask(ledger, "r5", ALICE, Limits(day=100)).granted == 35
    assert ledger.spent("key")[:2] == [Spent(ALICE, MONTH, 15, 85), Spent(ALICE, DAY, 15, 85)]
    assert ask(ledger, "r6", ALICE, Limits(month=90)).refused == Refusal("key", "month")
    with snapshot(where) as database:
        assert differences(database) == []


def test_both_budgets_hold_and_the_keys_own_is_named_first(ledger: Ledger) -> None:
    def ask_both(name: str, skill: int, key: int) -> Admission:
        return ledger.open(
            Opening(name, "help", "tiny", 10, 50, Limits(day=skill), key_id=ALICE, key_limits=Limits(day=key))
        ).result()

    assert ask_both("r1", skill=30, key=40).granted == 20
    assert ask_both("r2", skill=30, key=500).refused == Refusal("skill", "day")
    assert ask_both("r3", skill=30, key=30).refused == Refusal("key", "day")
    assert ask_both("r4", skill=500, key=50).granted == 10


def test_visitors_are_charged_to_no_key(ledger: Ledger) -> None:
    assert ask(ledger, "r1", "", Limits()).granted == 50
    assert ledger.spent("key") == []


def test_rotated_keys_share_one_budget_and_each_is_charged_for_its_own_replies(ledger: Ledger, where: str) -> None:
    family = (SUCCESSOR, ALICE)
    assert ask(ledger, "r1", ALICE, Limits(day=100), family).granted == 50
    assert ask(ledger, "r2", SUCCESSOR, Limits(day=100), family).granted == 30
    assert ask(ledger, "r3", SUCCESSOR, Limits(day=100), family).refused == Refusal("key", "day")
    end(ledger, "r1", ALICE, 50)
    end(ledger, "r2", SUCCESSOR, 30)
    with snapshot(where) as database:
        by_key = {row[0]: row[2] + row[4] for row in grouped(database, ("key",), EVER)}
    assert by_key == {ALICE: 60, SUCCESSOR: 40}
    assert {row.owner: row.used for row in ledger.spent("key") if row.period == DAY} == by_key


@pytest.mark.slow
def test_replicas_that_share_keys_and_skills_crosswise_neither_overdraw_nor_deadlock(where: str) -> None:
    """Skill and key are locked by every job of a batch: without one order for all, two replicas wait for each other."""
    replicas = [Ledger(where, instance=name) for name in ("ab" if where.startswith("postgres") else "a")]
    keys, skills, most = (ALICE, BOB, SUCCESSOR), ("one", "two", "three"), 2000

    def reply(index: int) -> tuple[str, int]:
        draw = random.Random(index)
        ledger, key, skill = replicas[index % len(replicas)], draw.choice(keys), draw.choice(skills)
        opening = Opening(
            f"r{index}", skill, "tiny", 5, draw.randrange(10, 60), key_id=key, key_limits=Limits(day=most)
        )
        admission = ledger.open(opening).result()
        if admission.refused:
            return key, 0
        output = draw.randrange(1, admission.granted + 1)
        usage = Usage(5, 0, output)
        ledger.settle(Settlement(f"r{index}", usage, "stop", skill, admission.day, 1.0, key_id=key)).result()
        return key, 5 + output

    with ThreadPoolExecutor(40) as pool:
        done = list(pool.map(reply, range(400)))
    spent = {row.owner: row.used for row in replicas[0].spent("key") if len(row.period) == len(MONTH)}
    for ledger in replicas:
        ledger.close()
    assert spent == {key: sum(tokens for owner, tokens in done if owner == key) for key in keys}
    assert all(most - 60 < used <= most for used in spent.values())
    with snapshot(where) as database:
        assert differences(database) == []


def make_version_2(where: str) -> None:
    """Write rows and make the ledger one of version 2, as a secateur before the budgets of keys left it."""
    ledger = Ledger(where, instance="old", clock=lambda: NOON)
    for name, key, tokens in (("r1", ALICE, 5), ("r2", ALICE, 7), ("r3", BOB, 1), ("r4", "", 9)):
        ask(ledger, name, key, Limits())
        end(ledger, name, key, tokens)
    ask(ledger, "open", BOB, Limits())
    ledger.close()
    database = connect(where, Options())
    with database.transaction():
        for table in ("key_budgets", "daily", "archives"):
            database.execute(f"DROP TABLE {table}")
        database.execute("DROP INDEX budgets_by_period")
        for column in ("knowledge_tokens", "retrieval_seconds", "usage_from"):
            database.execute(f"ALTER TABLE requests DROP COLUMN {column}")
        database.execute("UPDATE ledger SET version = 2")
    database.close()


def test_an_older_ledger_is_upgraded_with_the_keys_use_so_far(where: str) -> None:
    make_version_2(where)
    new = Ledger(where, instance="new" if where.startswith("postgres") else "old", clock=lambda: NOON)
    open_still = 60 if where.startswith("postgres") else 0  # another replica's row is recovered later
    assert [(row.owner, row.used, row.reserved) for row in new.spent("key") if row.period == DAY] == [
        (ALICE, 32, 0),
        (BOB, 11, open_still),
    ]
    assert ask(new, "next", ALICE, Limits(month=60)).granted == 18
    new.close()
    with snapshot(where) as database:
        assert differences(database) == []


def test_a_ledger_that_an_older_replica_writes_to_is_not_upgraded(shared: str) -> None:
    make_version_2(shared)
    other = connect(shared, Options())
    assert other.claim("old")
    with pytest.raises(ConfigError, match="version 2 that instance 'old' still writes to: stop all replicas"):
        Ledger(shared, instance="new")
    other.close()
    Ledger(shared, instance="new").close()
