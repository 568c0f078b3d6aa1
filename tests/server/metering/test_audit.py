"""The audit log: one chain under concurrent writers, and every kind of tampering named."""

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from server.commands.__main__ import main
from server.errors import ConfigError
from server.metering.audit import chain
from server.metering.audit.chain import Entry, Event, faults
from server.metering.audit.log import AuditLog
from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable
from server.storage.database import StorageError

Capture = pytest.CaptureFixture[str]


def read(where: str) -> list[Entry]:
    with snapshot(where) as database:
        return list(chain.entries(database))


def written(where: str, count: int = 5) -> list[Entry]:
    log = AuditLog(where, clock=lambda: 1_795_000_000.25)
    for index in range(count):
        log.put(Event("ab12", "reload", f"object {index}", "192.0.2.1", "200")).result(10)
    log.close()
    return read(where)


def test_entries_are_numbered_timed_and_chained_from_the_first(where: str) -> None:
    found = written(where, 3)
    assert [entry.number for entry in found] == [1, 2, 3]
    assert [entry.previous for entry in found] == [chain.GENESIS, found[0].hash, found[1].hash]
    assert {entry.moment for entry in found} == {"2026-11-18T11:06:40.250000+00:00"}
    assert not list(faults(found))
    assert written(where, 2)[3].previous == found[2].hash  # a second start goes on


def test_an_old_ledger_gets_the_table_and_stays_a_ledger(where: str) -> None:
    ledger = Ledger(where, instance="a")
    log = AuditLog(where)
    log.put(Event("server", "server.start")).result(10)
    ledger.probe().result(10)
    log.close()
    ledger.close()
    assert len(read(where)) == 1
    Ledger(where, instance="a").close()


def test_writers_in_parallel_keep_one_chain(where: str) -> None:
    logs = [AuditLog(where) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: logs[n % 4].put(Event(f"writer {n % 4}", "reload", str(n))), range(200)))
    for future in done:
        future.result(60)
    for log in logs:
        log.close()
    found = read(where)
    assert len(found) == 200
    assert {entry.object for entry in found} == {str(n) for n in range(200)}
    assert not list(faults(found))


def test_an_event_for_once_is_recorded_once_by_all_writers(where: str) -> None:
    logs = [AuditLog(where) for _ in range(3)]
    for future in [log.put(Event("root", "key.created", "ab12 in keys.json", once=True)) for log in logs * 3]:
        future.result(30)
    for log in logs:
        log.close()
    assert [entry.object for entry in read(where)] == ["ab12 in keys.json"]


def test_hostile_text_is_stored_bounded_and_verifies(where: str) -> None:
    log = AuditLog(where)
    log.put(Event("x\x00\n\x1b[2J\ud800", "reload", "y" * 10_000)).result(10)
    log.close()
    [entry] = read(where)
    assert entry.who.isprintable()
    assert len(entry.object) == 500
    assert not list(faults([entry]))


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET who = 'x'"])
def test_the_table_refuses_changes(where: str, statement: str) -> None:
    written(where, 2)
    log = AuditLog(where)
    with pytest.raises(StorageError, match="append-only"):
        log._database.execute(statement)
    log.close()


def test_a_lost_entry_is_an_error_of_its_caller(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(str(tmp_path / "l.sqlite3"))
    log._database.execute("DROP TABLE audit")
    with pytest.raises(LedgerUnavailable):
        log.put(Event("x", "reload")).result(10)
    assert "1 audit entries are lost: no such table: audit" in caplog.text
    log.close()


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite3").write_text("no database" * 100)
    with pytest.raises(ConfigError, match="cannot be used as the ledger"):
        AuditLog(tmp_path / "l.sqlite3")


def rehashed(entry: tuple[object, ...]) -> tuple[object, ...]:
    """The row with the hash that its content must have, as a careful attacker writes it."""
    return (*entry[:-1], Entry(*entry).digest)  # type: ignore[arg-type]


Rows = list[tuple[object, ...]]
TAMPERS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "changed": (lambda r: [*r[:2], (*r[2][:2], "nobody", *r[2][3:]), *r[3:]], "entry 3 was changed or inserted"),
    "time changed": (lambda r: [(r[0][0], "2020", *r[0][2:]), *r[1:]], "entry 1 was changed or inserted"),
    "changed and rehashed": (
        lambda r: [*r[:2], rehashed((*r[2][:2], "nobody", *r[2][3:])), *r[3:]],
        "entry 4 was inserted, or entry 3 replaced",
    ),
    "removed in the middle": (lambda r: [*r[:2], *r[3:]], "entry 3 was removed"),
    "two removed": (lambda r: [r[0], *r[3:]], "entries 2 to 3 were removed"),
    "first removed": (lambda r: r[1:], "entry 1 was removed"),
    "removed and renumbered": (
        lambda r: [*r[:2], *((row[0] - 1, *row[1:]) for row in r[3:])],  # type: ignore[operator]
        "entry 3 was changed or inserted",
    ),
    "reordered": (
        lambda r: [*r[:1], (2, *r[2][1:]), (3, *r[1][1:]), *r[3:]],
        "entry 2 was changed or inserted",
    ),
    "reordered and rehashed": (
        lambda r: [*r[:1], rehashed((2, *r[2][1:])), rehashed((3, *r[1][1:])), *r[3:]],
        "entry 2 was inserted, or entry 1 replaced",
    ),
    "appended without a hash": (lambda r: [*r, (6, *r[4][1:7], r[4][8], "f" * 64)], "entry 6 was changed or inserted"),
    "appended without the chain": (
        lambda r: [*r, rehashed((6, *r[4][1:7], "0" * 63 + "1", ""))],
        "entry 6 was inserted, or entry 5 replaced",
    ),
    "inserted before the first": (lambda r: [(0, *r[0][1:7], "a", "b"), *r], "entry 0 was inserted before the first"),
}


def rewrite(file: Path, rows: Rows) -> None:
    """Replace all rows, as the owner of the database can."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DROP TABLE audit")
        columns = ", ".join(chain.COLUMNS[1:])
        database.execute(f"CREATE TABLE audit (number INTEGER PRIMARY KEY, {columns})")
        database.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


@pytest.mark.parametrize("name", TAMPERS)
def test_tampering_is_found_and_its_first_place_named(name: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "l.sqlite3"
    written(str(file))
    change, sentence = TAMPERS[name]
    assert main(["audit", str(file), "--verify"]) == 0
    capsys.readouterr()
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT * FROM audit ORDER BY number").fetchall()
    rewrite(file, change(rows))
    assert main(["audit", str(file), "--verify"]) == 1
    assert capsys.readouterr().out.startswith(sentence)


def test_a_cut_end_or_a_rewritten_log_needs_the_anchor(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "l.sqlite3"
    head = written(str(file))[-1].hash
    assert main(["audit", str(file), "--verify"]) == 0
    assert f"5 entries, 0 faults; head: entry 5, {head}" in capsys.readouterr().out
    assert main(["audit", str(file), "--expect", head]) == 0
    written(str(file), 1)
    assert main(["audit", str(file), "--expect", head]) == 0  # the log has grown since
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT * FROM audit ORDER BY number").fetchall()
    rewrite(file, rows[:4])
    assert main(["audit", str(file), "--verify"]) == 0
    capsys.readouterr()
    assert main(["audit", str(file), "--expect", head]) == 1
    assert capsys.readouterr().out.startswith(f"no entry has the hash {head}: entries were removed from the end")


def test_the_command_prints_chosen_entries(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "l.sqlite3"
    log = AuditLog(file, clock=iter([1e9, 1.1e9, 1.2e9]).__next__)
    for action in ("server.start", "key.created", "key.revoked"):
        log.put(Event("root", action, "x")).result(10)
    log.close()
    assert main(["audit", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["number", "moment", "who", "action", "object", "address", "result"]
    assert len(lines) == 4
    assert main(["audit", str(file), "--action", "key.", "--format", "jsonl"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["action"] for entry in shown] == ["key.created", "key.revoked"]
    assert {"previous", "hash"} <= shown[0].keys()
    for since in ("2004-11-10", "2004-11-09T12:00:00Z", "2004-11-09T13:00:00+01:00"):
        assert main(["audit", str(file), "--since", since, "--format", "jsonl"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1, since
    with pytest.raises(SystemExit):
        main(["audit", str(file), "--since", "yesterday"])
    assert "write 2026-11-30" in capsys.readouterr().err


def test_the_command_says_where_there_is_no_log(tmp_path: Path, capsys: Capture) -> None:
    assert main(["audit", str(tmp_path / "none.sqlite3")]) == 2
    Ledger(tmp_path / "old.sqlite3").close()
    assert main(["audit", str(tmp_path / "old.sqlite3")]) == 2
    assert "has no audit log yet" in capsys.readouterr().err
