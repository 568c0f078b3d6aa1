"""Several replicas on one ledger in a real PostgreSQL, and the sentences for what cannot be."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from server.errors import ConfigError
from server.metering.histograms import Observers
from server.metering.ledger.connection import second_connection, snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable, Opening, Settlement, Usage
from server.metering.meter import Meter
from server.metering.reconcile import differences
from tests.support.harness import until

pytestmark = pytest.mark.slow


def opening(name: str, skill: str = "help") -> Opening:
    return Opening(name, skill, "tiny", 10, 50)


def test_each_replica_shows_its_own_totals_and_they_add_up(shared: str) -> None:
    replicas = [Ledger(shared, instance=f"replica-{index}") for index in range(3)]

    def reply(index: int) -> None:
        ledger = replicas[index % 3]
        ledger.open(opening(f"r{index}", f"skill{index % 4}")).result()
        ledger.count({f"r{index}": Usage(10, 0, 1)}).result()
        ledger.settle(Settlement(f"r{index}", Usage(10, 0, 2), "stop", f"skill{index % 4}")).result()

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(reply, range(240)))
    outputs = [sum(n for (*_, kind), n in replica.totals().tokens.items() if kind == "output") for replica in replicas]
    assert outputs == [160, 160, 160]
    with snapshot(shared) as database:
        numbers = [row[0] for row in database.execute("SELECT sequence FROM requests ORDER BY sequence")]
        assert database.execute("SELECT sum(used), sum(reserved) FROM budgets") == [(2 * 240 * 12, 0)]
    assert numbers == list(range(1, 241))  # without a gap, so that an export can go on where it was
    for replica in replicas:
        replica.close()


def test_sequence_numbers_appear_in_their_order(shared: str) -> None:
    """A reader of a number has seen all below it, or an export that resumes there would miss some."""
    replicas = [Ledger(shared, instance=name) for name in "ab"]
    stop = threading.Event()
    gaps: list[list[int]] = []

    def watch() -> None:
        while not stop.is_set():
            with snapshot(shared) as database:
                rows = database.execute("SELECT sequence FROM requests WHERE sequence IS NOT NULL ORDER BY sequence")
            if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
                gaps.append([row[0] for row in rows])

    watcher = threading.Thread(target=watch)
    watcher.start()

    def reply(index: int) -> None:
        replicas[index % 2].open(opening(f"r{index}")).result()
        replicas[index % 2].settle(Settlement(f"r{index}", Usage(10, 0, 2), "stop")).result()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(reply, range(200)))
    stop.set()
    watcher.join()
    for replica in replicas:
        replica.close()
    assert not gaps


def test_a_claimed_instance_name_is_refused(shared: str) -> None:
    ledger = Ledger(shared, instance="a")
    with pytest.raises(ConfigError, match=r"another secateur writes to postgresql:///\w+ as instance 'a': give each"):
        Ledger(shared, instance="a")
    ledger.close()
    Ledger(shared, instance="a").close()


def test_the_rows_of_a_replica_that_never_comes_back_are_recovered_by_another_and_those_of_a_live_one_are_not(
    shared: str,
) -> None:
    alive, dead = Ledger(shared, instance="alive"), Ledger(shared, instance="dead")
    alive.open(opening("r1")).result()
    dead.open(opening("r2")).result()
    dead.count({"r2": Usage(10, 0, 4)}).result()
    dead.close()
    third = Ledger(shared, instance="third", sweep_seconds=0.05)
    assert third.recovered == 0, "one whose connection was just lost has no name either: it takes two looks"

    def states() -> list[tuple[object, ...]]:
        with snapshot(shared) as database:
            return database.execute("SELECT request_id, state, output_tokens FROM requests ORDER BY id")

    until(lambda: states() == [("r1", "open", 0), ("r2", "recovered", 4)])
    again = Ledger(shared, instance="dead")  # whose totals have what the other one recovered for it
    assert again.totals().tokens["help", "tiny", "output"] == 4
    for ledger in (alive, third, again):
        ledger.close()


def test_a_lost_connection_fails_closed_and_reconnects(shared: str) -> None:
    ledger = Ledger(shared, instance="a", retry_seconds=0.05)
    ledger.open(opening("r1")).result()
    with psycopg.connect(shared, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(LedgerUnavailable):
        ledger.settle(Settlement("r1", Usage(10, 0, 7), "stop")).result()
    while not ledger.writable:
        threading.Event().wait(0.01)
    assert ledger.totals().tokens["help", "tiny", "output"] == 7
    with pytest.raises(ConfigError, match="another secateur writes to"):
        Ledger(shared, instance="a")
    ledger.close()


def test_a_name_is_claimed_again_after_several_failed_reconnects(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(shared, instance="a", retry_seconds=0.05)
    ledger.open(opening("r1")).result()
    connect, tries = psycopg.connect, []

    def refused(*given: object, **options: object) -> object:
        tries.append(1)
        if len(tries) <= 2:
            raise psycopg.OperationalError("the database system is starting up")
        return connect(*given, **options)  # type: ignore[arg-type]

    backend = backend_of(shared)
    monkeypatch.setattr(psycopg, "connect", refused)
    os.kill(backend, signal.SIGTERM)
    until(lambda: len(tries) == 3 and ledger.writable)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="another secateur writes to"):
        Ledger(shared, instance="a")
    other = Ledger(shared, instance="b", sweep_seconds=0.05)
    commits = other.commits
    until(lambda: other.commits > commits + 5)  # each a look at whose names are free
    ledger.settle(Settlement("r1", Usage(10, 0, 7), "stop")).result()
    with snapshot(shared) as database:
        assert database.execute("SELECT state, output_tokens FROM requests") == [("final", 7)]
    for one in (ledger, other):
        one.close()


def test_every_connection_sets_the_servers_keepalives(shared: str) -> None:
    with second_connection(shared) as database:  # as the one that the webhook holds its lock by
        assert database.execute("SHOW tcp_keepalives_idle") in ([("5",)], [("0",)])  # 0: of a socket in the file system
        assert database.execute("SHOW idle_in_transaction_session_timeout") == [("10s",)]


def test_rows_of_two_dead_replicas_are_recovered_in_locking_order(shared: str) -> None:
    for name, skill in (("a", "z"), ("b", "y"), ("c", "z"), ("d", "y")):
        dead = Ledger(shared, instance=name)
        dead.open(opening(f"of {name}", skill)).result()
        dead.close()
    sweeper = Ledger(shared, instance="sweeper", sweep_seconds=0.05)

    def closed() -> list[tuple[object, ...]]:
        with snapshot(shared) as database:
            return database.execute("SELECT sequence, skill FROM requests WHERE state = 'recovered' ORDER BY sequence")

    until(lambda: len(closed()) == 4)
    assert closed() == [(1, "y"), (2, "y"), (3, "z"), (4, "z")]
    with snapshot(shared) as database:
        assert differences(database) == []
    sweeper.close()


def test_a_hanging_database_does_not_delay_shutdown(
    shared: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.metering.ledger.ledger.CLOSE_SECONDS", 0.2)
    ledger = Ledger(shared, instance="a")
    ledger.open(opening("r1")).result()
    stopped = backend_of(shared)
    os.kill(stopped, signal.SIGSTOP)
    try:
        settled = ledger.settle(Settlement("r1", Usage(10, 0, 3), "stop", "help"))
        ledger.close()
        assert "does not answer" in caplog.text
        assert not settled.done()
    finally:
        os.kill(stopped, signal.SIGCONT)
    ledger._thread.join()
    ledger._database.close()


def test_an_idle_replica_notices_that_its_database_is_gone(shared: str) -> None:
    """No request has to find out: /readyz says so before one comes."""
    ledger = Ledger(shared, instance="a", retry_seconds=0.3, sweep_seconds=0.05)
    os.kill(backend_of(shared), signal.SIGTERM)
    until(lambda: not ledger.writable)
    until(lambda: ledger.writable)
    ledger.close()


def test_synchronous_commit_is_switched_on(shared: str) -> None:
    with psycopg.connect(shared, autocommit=True) as other:
        for before, expected in (("off", "on"), ("remote_apply", "remote_apply")):
            other.execute(f"ALTER ROLE secateur SET synchronous_commit = '{before}'")
            ledger = Ledger(shared, instance="a")
            assert ledger._database.execute("SHOW synchronous_commit") == [(expected,)]
            ledger.close()
        other.execute("ALTER ROLE secateur RESET synchronous_commit")


def test_an_unreachable_database_is_named_without_the_password() -> None:
    with pytest.raises(ConfigError, match=r"postgresql:///usage cannot be used as the ledger: ") as refused:
        Ledger("postgresql://someone:secret@/usage?host=/nowhere", instance="a")
    assert "secret" not in str(refused.value)


def test_a_replica_that_dies_is_recovered_by_one_that_goes_on_and_a_living_one_never(shared: str) -> None:
    """Nobody starts again: what the dead one had reserved would count against the budget until somebody does."""
    alive = Ledger(shared, instance="alive")
    alive.open(opening("r1")).result()
    dead = Ledger(shared, instance="dead")
    dead.open(opening("r2")).result()
    dead.count({"r2": Usage(10, 0, 4)}).result()
    sweeper = Ledger(shared, instance="sweeper", sweep_seconds=0.05)
    dead.close()  # its row stays open, as after a kill

    def states() -> list[tuple[object, ...]]:
        with snapshot(shared) as database:
            return database.execute("SELECT request_id, state, output_tokens FROM requests ORDER BY id")

    until(lambda: states()[1] == ("r2", "recovered", 4))
    assert states()[0] == ("r1", "open", 0)
    assert [row.reserved for row in sweeper.spent()] == [60, 60]
    Ledger(shared, instance="dead").close()  # the name is free
    alive.settle(Settlement("r1", Usage(10, 0, 9), "stop", "help")).result()
    for ledger in (alive, sweeper):
        ledger.close()
    with snapshot(shared) as database:
        assert differences(database) == []


def backend_of(url: str) -> int:
    """The process that serves the one connection to this database."""
    with psycopg.connect(url, autocommit=True) as other:
        statement = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        [(pid,)] = other.execute(statement).fetchall()
    return int(pid)


SILENCE = ["The ledger has not answ", "The ledger can be writt"]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what the ledger's callers wait for its answer."""
    for name, seconds in (
        ("meter.ANSWER_SECONDS", 0.3),
        ("meter.STALL_SECONDS", 0.5),
        ("ledger.ledger.SLOW_SECONDS", 0.2),
    ):
        monkeypatch.setattr(f"server.metering.{name}", seconds)


def test_a_hanging_database_is_answered_503_and_leaves_no_open_row(
    shared: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither answers nor closes the connection, as behind a network that swallows everything."""
    hurry(monkeypatch)
    made = Ledger(shared, instance="a")
    stopped = backend_of(shared)

    async def through() -> None:
        metering = Meter(made, Observers([]))
        running = await metering.admit(opening("running"))
        os.kill(stopped, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(running.count(1, prompt=Usage(10)))
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await metering.admit(opening("late"))
            assert not made.writable
            made.report_silence()
            made.report_silence()
            assert not await metering.writable()
            with pytest.raises(LedgerUnavailable, match="its last write failed or hangs"):  # at once
                await metering.admit(opening("refused"))
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await waiting
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await running.settle("error", computed=Usage(10, 0, 1))
        finally:
            os.kill(stopped, signal.SIGCONT)

    asyncio.run(through())
    until(lambda: made.writable)
    assert [record.getMessage()[:23] for record in caplog.records if "ledger" in record.name] == SILENCE
    until(lambda: [row.reserved for row in made.spent()] == [0, 0])
    with snapshot(shared) as database:
        rows = database.execute("SELECT request_id, state, outcome, output_tokens FROM requests ORDER BY id")
        assert rows == [("running", "final", "error", 1), ("late", "final", "rejected", 0)]
        assert differences(database) == []
    made.close()
