import asyncio
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ConfigError
from server.metering.histograms import Observers
from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable, Opening, Outcome, Settlement, Usage
from server.metering.meter import Meter
from server.storage.database import StorageError
from tests.support.harness import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "usage.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def opening(name: str, prompt: int = 10) -> Opening:
    return Opening(name, "help", "tiny", prompt)


def rows(path: Path) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute(
            "SELECT request_id, state, outcome, prompt_tokens, cached_tokens, output_tokens FROM requests"
        ).fetchall()
    finally:
        database.close()


def test_values_that_the_database_rejects_do_not_end_the_thread(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="OverflowError"):
        ledger.open(Opening("endless", "help", "tiny", 10, 2**63)).result(timeout=120)
    ledger.open(opening("r1")).result(timeout=120)
    assert ledger.writable
    ledger.settle(Settlement("r1", Usage(10, 0, 3), "stop")).result(timeout=120)
    assert ("r1", "final", "stop", 10, 0, 3) in rows(path)


def test_settling_closes_the_row_and_updates_the_totals(ledger: Ledger, path: Path) -> None:
    ledger.open(opening("r1")).result()
    assert rows(path) == [("r1", "open", None, 0, 0, 0)]
    assert ledger.totals().tokens == {}
    ledger.settle(Settlement("r1", Usage(10, 4, 3), "stop")).result()
    assert rows(path) == [("r1", "final", "stop", 10, 4, 3)]
    assert ledger.totals().tokens == {
        ("help", "tiny", "input"): 10,
        ("help", "tiny", "cached"): 4,
        ("help", "tiny", "output"): 3,
    }
    assert ledger.totals().requests == {("help", "tiny", "stop"): 1}


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(ledger: Ledger) -> None:
    """SQLite's own word for it: 2 is FULL, which waits for the disk at each commit of the log."""
    assert ledger._database.execute("PRAGMA journal_mode") == [("wal",)]
    assert ledger._database.execute("PRAGMA synchronous") == [(2,)]


def test_only_the_first_settlement_counts(ledger: Ledger) -> None:
    ledger.open(opening("r1")).result()
    for output in (3, 3, 99):
        ledger.settle(Settlement("r1", Usage(10, 0, output), "stop")).result()
    ledger.settle(Settlement("never opened", Usage(10, 0, 5), "stop")).result()
    assert ledger.totals().tokens["help", "tiny", "output"] == 3
    assert ledger.totals().requests == {("help", "tiny", "stop"): 1}


def test_counting_a_closed_row_is_reported_and_the_others_count(where: str) -> None:
    ledger = Ledger(where, instance="a")
    for name in ("r1", "r2"):
        ledger.open(opening(name)).result()
    ledger.settle(Settlement("r1", Usage(10, 0, 1), "recovered")).result()  # as by another replica
    assert ledger.count({"r1": Usage(10, 0, 2), "r2": Usage(10, 0, 3)}).result() == {"r1"}
    assert ledger.count({"r2": Usage(10, 0, 4)}).result() == frozenset()

    async def through() -> None:
        metering = Meter(ledger, Observers([]))
        reply = await metering.admit(Opening("r3", "help", "tiny", 10, 50))
        await reply.count(1, prompt=Usage(10))
        ledger.settle(Settlement("r3", Usage(10, 0, 1), "recovered")).result()
        with pytest.raises(LedgerUnavailable, match="has closed the reply as recovered"):
            await asyncio.wait_for(reply.count(1, prompt=Usage(10)), 5)  # not after half a minute

    asyncio.run(through())
    with snapshot(where) as database:
        found = database.execute("SELECT request_id, state, output_tokens FROM requests ORDER BY id")
    assert found == [("r1", "recovered", 1), ("r2", "open", 4), ("r3", "recovered", 1)]
    ledger.close()


def test_a_probe_writes_to_the_disk_each_time(path: Path) -> None:
    """Else a ledger on a full disk would be called writable by the next probe."""
    ledger = Ledger(path)
    log, sizes = path.with_name(path.name + "-wal"), []
    for _ in range(3):
        ledger.probe().result()
        sizes.append(log.stat().st_size)
    assert sizes == sorted(set(sizes))
    ledger.close()


def test_a_cursor_never_goes_back(where: str) -> None:
    ledger = Ledger(where, instance="a")
    for value in (300, 200):  # the second by a sender who lost his turn meanwhile
        ledger.remember("webhook", value).result()
    with snapshot(where) as database:
        assert database.execute("SELECT value FROM cursors WHERE name = 'webhook'") == [(300,)]
    ledger.close()


def test_open_rows_of_a_dead_process_are_recovered_once(path: Path) -> None:
    first = Ledger(path)
    first.open(opening("r1", 10)).result()
    first.open(opening("r2", 20)).result()
    first.open(opening("r3", 40)).result()
    first.settle(Settlement("r1", Usage(10, 0, 5), "length")).result()
    first.count({"r2": Usage(20, 8, 2)}).result()
    first.count({"r1": Usage(10, 0, 9), "r2": Usage(20, 8, 3)}).result()  # r1 is closed: it stays as it is
    first.close()
    for recovered in (2, 0):
        again = Ledger(path)
        assert again.recovered == recovered
        assert again.totals().tokens["help", "tiny", "input"] == 10 + 20
        assert again.totals().tokens["help", "tiny", "cached"] == 8
        assert again.totals().tokens["help", "tiny", "output"] == 5 + 3
        assert again.totals().requests == {("help", "tiny", "length"): 1, ("help", "tiny", "recovered"): 2}
        again.close()
    assert ("r2", "recovered", "recovered", 20, 8, 3) in rows(path)
    assert ("r3", "recovered", "recovered", 0, 0, 0) in rows(path)  # nothing was sampled, so nothing is counted


def test_one_process_owns_the_file(ledger: Ledger, path: Path) -> None:
    program = f"from pathlib import Path; from server.metering.ledger.ledger import Ledger; Ledger(Path({str(path)!r}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert f"{path} is in use by another secateur (process {os.getpid()})" in other.stderr


def test_the_file_is_free_again_after_close(path: Path) -> None:
    Ledger(path).close()
    Ledger(path).close()
    with (path.parent / "usage.sqlite3.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used as the ledger: file is not a database"):
        Ledger(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made: "):
        Ledger(tmp_path / "file" / "usage.sqlite3")


def test_a_locked_file_fails_closed_and_the_settlement_is_retried(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(path, busy_seconds=0.05, retry_seconds=0.05)
    ledger.open(opening("r1")).result()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        ledger.open(opening("r2")).result()
    with pytest.raises(LedgerUnavailable):
        ledger.settle(Settlement("r1", Usage(10, 0, 7), "stop")).result()
    with pytest.raises(LedgerUnavailable):
        ledger.probe().result()
    assert not ledger.writable
    other.execute("ROLLBACK")
    other.close()
    ledger.probe().result()
    assert ledger.writable
    assert ledger.totals().tokens["help", "tiny", "output"] == 7
    assert [row[0] for row in rows(path)] == ["r1"]
    assert caplog.messages == [
        "The usage ledger cannot be used (database is locked). Until it can, requests are answered 503.",
        "The ledger can be written again.",
    ]
    ledger.close()


def test_a_full_disk_fails_closed_and_damages_nothing(path: Path) -> None:
    """`max_page_count` makes SQLite meet SQLITE_FULL, as a full disk would."""
    ledger = Ledger(path)
    ledger.open(opening("r1")).result()
    pages = ledger._database.execute("PRAGMA page_count")[0][0]
    ledger._database.execute(f"PRAGMA max_page_count = {pages}")
    writes = [ledger.open(opening(f"more {index}")) for index in range(1000)]
    assert any("full" in str(write.exception()) for write in writes)  # a small last batch may still fit
    ledger._database.execute("PRAGMA max_page_count = 1000000")
    ledger.settle(Settlement("r1", Usage(10, 0, 1), "stop")).result()
    assert ledger._database.execute("PRAGMA integrity_check") == [("ok",)]
    assert ledger.totals().requests == {("help", "tiny", "stop"): 1}
    ledger.close()


def test_a_deleted_file_fails_closed_says_so_once_and_recovers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(path, retry_seconds=0.02)
    ledger.open(opening("r1")).result(timeout=120)
    away = path.with_name("away")
    path.rename(away)
    until(lambda: not ledger.writable)  # without a request
    with pytest.raises(LedgerUnavailable, match=r"usage.sqlite3 was deleted or moved while it was open; put the same"):
        ledger.open(opening("r2")).result(timeout=120)
    with pytest.raises(LedgerUnavailable):
        ledger.settle(Settlement("r1", Usage(10, 0, 3), "stop")).result(timeout=120)
    path.write_bytes(away.read_bytes())
    with pytest.raises(StorageError, match="was replaced by another file"):
        ledger.totals()
    assert sum("answered 503" in line for line in caplog.messages) == 1
    away.replace(path)
    until(lambda: ledger.writable)
    assert {row[:3] for row in rows(path)} == {("r1", "final", "stop")}
    ledger.close()


def test_a_retried_count_does_not_undo_that_of_another_choice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice's count fails, the second's is written, and then the first's is tried again."""
    monkeypatch.setattr("server.metering.meter.RETRY_SECONDS", 1.0)
    ledger = Ledger(path, retry_seconds=0.02)

    async def becomes(writable: bool) -> None:
        while ledger.writable != writable:
            await asyncio.sleep(0.005)

    async def through() -> None:
        reply = await Meter(ledger, Observers([])).admit(opening("r1"))
        away = path.rename(path.with_name("away"))
        first = asyncio.create_task(reply.count(1, prompt=Usage(10)))
        await becomes(False)
        away.rename(path)
        await becomes(True)
        await reply.count(2, choice=1)
        await first

    asyncio.run(through())
    ledger.close()
    assert rows(path) == [("r1", "open", None, 10, 0, 3)]


def test_replies_that_begin_during_an_outage_do_not_wait_for_it_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example replies that waited for the slots of replies ended by the outage."""
    monkeypatch.setattr("server.metering.meter.STALL_SECONDS", 0.5)
    ledger = Ledger(path, retry_seconds=0.02)

    async def through() -> None:
        meter = Meter(ledger, Observers([]))
        first, second = await meter.admit(opening("r1")), await meter.admit(opening("r2"))
        away = path.rename(path.with_name("away"))
        with pytest.raises(LedgerUnavailable):
            await first.count(1, prompt=Usage(10))
        monkeypatch.setattr("server.metering.meter.RETRY_SECONDS", 3600)
        with pytest.raises(LedgerUnavailable):  # without a retry
            await second.count(1, prompt=Usage(10))
        away.rename(path)
        until(lambda: ledger.writable)
        monkeypatch.setattr("server.metering.meter.RETRY_SECONDS", 0.05)
        third = await meter.admit(opening("r3"))
        path.rename(away)
        waiting = asyncio.create_task(third.count(1, prompt=Usage(10)))
        await asyncio.sleep(0.1)
        away.rename(path)
        await waiting  # the next outage has its own time

    asyncio.run(through())
    ledger.close()


def test_many_writers_share_commits_and_lose_nothing(ledger: Ledger) -> None:
    def reply(index: int) -> None:
        ledger.open(opening(f"r{index}")).result()
        ledger.settle(Settlement(f"r{index}", Usage(10, 1, 2), "stop")).result()

    with ThreadPoolExecutor(32) as pool:
        done = wait([pool.submit(reply, index) for index in range(400)]).done
    assert all(job.exception() is None for job in done)
    assert ledger.totals().tokens["help", "tiny", "output"] == 800
    assert ledger.totals().requests == {("help", "tiny", "stop"): 400}


steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "settle", "reopen"]),
        st.integers(0, 5),
        st.integers(0, 9),
        st.sampled_from(["stop", "length", "client_gone", "error"]),
    ),
    max_size=20,
)


@settings(max_examples=30, deadline=None)
@given(steps)
def test_any_history_keeps_totals_equal_to_the_sum_of_closed_rows(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int, Outcome]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "usage.sqlite3"
    ledger = Ledger(path)
    opened = set()
    for step, name, count, outcome in history:
        if step == "open" and name not in opened:
            opened.add(name)
            ledger.open(opening(f"r{name}", count)).result()
        elif step == "settle":
            ledger.settle(Settlement(f"r{name}", Usage(count, count // 2, count + 1), outcome)).result()
        elif step == "reopen":
            ledger.close()
            ledger = Ledger(path)
    totals = ledger.totals()
    closed = [row for row in rows(path) if row[1] != "open"]
    for position, kind in ((3, "input"), (4, "cached"), (5, "output")):
        assert totals.tokens.get(("help", "tiny", kind), 0) == sum(int(str(row[position])) for row in closed)
    assert sum(totals.requests.values()) == len(closed)
    ledger.close()


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE requests (id)")
    database.close()
    with pytest.raises(ConfigError, match="is another program's database"):
        Ledger(path)


def test_a_ledger_of_a_later_version_is_refused(path: Path) -> None:
    Ledger(path).close()
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE ledger SET version = 99")
    database.close()
    with pytest.raises(ConfigError, match="is a ledger of version 99 and this secateur writes version 4"):
        Ledger(path)


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every disk have two pages left, as the operating system tells it."""
    disk = os.statvfs("/")
    fields = list(disk)
    fields[4] = 10_000 // disk.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))


def test_a_disk_with_room_for_the_probe_alone_is_full(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.probe().result(timeout=120)
    fill(monkeypatch)
    with pytest.raises(LedgerUnavailable, match=r"disk of .*sqlite3 has 8192 bytes left, and 262144 are needed"):
        ledger.probe().result(timeout=120)
    assert not ledger.writable
    monkeypatch.undo()
    until(lambda: ledger.writable)
    assert "The ledger can be written again." in caplog.text


def test_an_idle_ledger_notices_a_full_disk_and_a_settlement_that_fits_does_not_hide_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.metering.ledger.ledger.WATCH_SECONDS", 0.01)
    ledger = Ledger(path, retry_seconds=0.01)
    ledger.open(opening("r1")).result(timeout=120)
    fill(monkeypatch)
    until(lambda: not ledger.writable)
    commits = ledger.commits
    ledger._unsettled.append(Settlement("r1", Usage(10, 0, 3), "stop"))
    until(lambda: ledger.commits > commits)
    until(lambda: not ledger._unsettled)
    assert not ledger.writable
    assert "again" not in caplog.text
    monkeypatch.undo()
    until(lambda: ledger.writable)
    ledger.close()
