"""Archives: totals before and after are equal, and a kill between any two steps loses nothing and doubles nothing."""

import asyncio
import csv
import gzip
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from starlette.requests import Request

from server.commands.__main__ import main
from server.errors import ConfigError
from server.metering.audit import chain
from server.metering.ledger.archive import moving
from server.metering.ledger.archive.files import COLUMNS, KIND, MANIFEST, read
from server.metering.ledger.connection import second_connection, snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Opening, Outcome, Settlement, Usage
from server.metering.reconcile import differences
from server.metering.usage import GROUPS, Span, grouped
from server.storage.connection import connect
from server.storage.database import Options, StorageError
from server.web.api.admin.usage import UsageEndpoint

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
BEFORE = "2026-11-01"
SPANS = (Span(), Span("2026-10-05", "2026-11-03"))
Sums = list[list[tuple[Any, ...]]]


@pytest.fixture
def filled(where: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Fifty replies from September to November and one of October that is open still; small batches."""
    moment, draw = [NOW], random.Random(4)
    ledger = Ledger(where, instance="a", clock=lambda: moment[0])
    outcomes: tuple[Outcome, ...] = ("stop", "length", "client_gone")
    for index in range(50):
        moment[0] = NOW - 86400 * draw.randrange(60)
        skill, key = draw.choice("xy"), draw.choice(["", "k1"])
        day = ledger.open(Opening(f"r{index}", skill, "m", 9, 60, key_id=key, idempotency=f"i{index}")).result().day
        usage = Usage(9, draw.randrange(9), draw.randrange(50))
        ledger.settle(Settlement(f"r{index}", usage, draw.choice(outcomes), skill, day, 0.5, None, key)).result()
    moment[0] = datetime(2026, 10, 31, 23, 59, tzinfo=UTC).timestamp()
    ledger.open(Opening("open", "x", "m", 9, 60)).result()
    ledger.close()  # the row stays open, as after a kill
    monkeypatch.setattr(moving, "READ", 7)
    monkeypatch.setattr(moving, "TAKE", moving.TAKE.replace(str(moving.MOVED), "7"))
    return where


def sums(where: str) -> Sums:
    with snapshot(where) as database:
        return [grouped(database, by, span) for by in ([], *([name] for name in GROUPS)) for span in SPANS]


def rows(where: str) -> list[tuple[Any, ...]]:
    with snapshot(where) as database:
        return database.execute("SELECT request_id, day, state, output_tokens FROM requests ORDER BY request_id")


def written(folder: Path, form: str) -> list[dict[str, str]]:
    """The rows of an archive, read by other means than the product's."""
    if form == "csv":
        return [
            row for path in sorted(folder.glob("*.csv.gz")) for row in csv.DictReader(gzip.open(path, "rt").readlines())
        ]
    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_totals_stay_and_rows_are_in_the_files(filled: str, form: str, tmp_path: Path) -> None:
    before, all_rows = sums(filled), rows(filled)
    out = tmp_path / "october"
    assert main(["usage", "archive", filled, "--before", BEFORE, "--output", str(out), "--format", form]) == 0
    assert sums(filled) == before
    kept = rows(filled)
    assert [row for row in all_rows if row[1] >= BEFORE or row[2] == "open"] == kept
    gone = [row for row in all_rows if row not in kept]
    assert sorted((row["request_id"], row["day"], str(row["output_tokens"])) for row in written(out, form)) == sorted(
        (name, day, str(output)) for name, day, _, output in gone
    )
    assert len(gone) > 15
    assert sorted(path.name for path in out.iterdir() if path.name[:5] == "usage") == [
        f"usage-2026-{month}.{'csv.gz' if form == 'csv' else form}" for month in ("09", "10")
    ]
    with snapshot(filled) as database:
        assert differences(database) == []
        [entry] = [entry for entry in chain.entries(database) if entry.action == "usage.archived"]
    assert entry.object == "october"
    assert f"{len(gone)} rows" in entry.result
    assert main(["reconcile", filled, "--archive", str(out)]) == 0


def test_an_archive_that_the_audit_log_misses_fails(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(chain, "append", full)
    out = tmp_path / "october"
    assert main(["usage", "archive", filled, "--before", BEFORE, "--output", str(out)]) == 2
    printed = capsys.readouterr()
    assert "audit log: the disk is full" in printed.err
    assert "sha256 of its manifest" in printed.out


class Killed(BaseException):
    """What a kill leaves: nothing after it runs."""


def killed_in(name: str, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the function `name` of `moving` end the process in its place, after some calls."""
    real: Callable[..., Any] = getattr(moving, name)
    calls = [0]

    def dies(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(moving, name, dies)


@pytest.mark.parametrize(("name", "after"), [("write", 0), ("_register", 0), ("move", 0), ("_take", 0), ("_take", 2)])
def test_a_kill_between_any_steps_changes_no_total_and_the_same_command_ends_it(
    filled: str, name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, all_rows = sums(filled), rows(filled)
    command = ["usage", "archive", filled, "--before", BEFORE, "--output", str(tmp_path / "out")]
    with monkeypatch.context() as context:
        killed_in(name, context, after)
        with pytest.raises(Killed):
            main(command)
    assert sums(filled) == before
    with snapshot(filled) as database:
        assert differences(database) == []
    assert (len(rows(filled)) < len(all_rows)) == (after == 2)
    ledger = Ledger(filled, instance="b", clock=lambda: NOW)  # replies go on meanwhile, also of an archived day
    ledger.open(Opening("new", "x", "m", 1, 1)).result()
    ledger.settle(Settlement("new", Usage(1, 0, 1), "stop", "x", "2026-11-20")).result()
    before = sums(filled)
    assert main(command) == 0
    assert sums(filled) == before
    ledger.close()
    assert {row[0] for row in rows(filled) if row[1] < BEFORE} == {"open"}
    assert len(written(tmp_path / "out", "csv")) + len(rows(filled)) == len(all_rows) + 1
    assert main(["reconcile", filled, "--archive", str(tmp_path / "out")]) == 0


def test_a_second_archive_takes_what_was_open(filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["usage", "archive", filled, "--before", BEFORE, "--output"]
    assert main([*command, str(tmp_path / "first")]) == 0
    assert "1 replies of these days are not closed yet" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "second")]) == 0
    assert "nothing to archive" in capsys.readouterr().out
    Ledger(filled, instance="a", clock=lambda: NOW).close()  # recovers the open row
    assert main([*command, str(tmp_path / "second")]) == 0
    assert "1 rows with 0 tokens" in capsys.readouterr().out
    archives = ["--archive", str(tmp_path / "first"), "--archive", str(tmp_path / "second")]
    assert main(["reconcile", filled, *archives]) == 0
    assert main(["reconcile", filled, *archives[:2]]) == 2
    assert "name all archives of this ledger: second is missing" in capsys.readouterr().err
    assert main(["usage", filled, "--after", "0"]) == 0
    assert "were archived: those are not listed" in capsys.readouterr().err


def test_the_admin_listener_says_up_to_which_number_rows_were_archived(filled: str, tmp_path: Path) -> None:
    def listed() -> tuple[str | None, int]:
        asked = Request({"type": "http", "query_string": b"after=0", "headers": []})
        answer = asyncio.run(UsageEndpoint(ledger).get(asked))
        return answer.headers.get("X-Archived-Through"), len(bytes(answer.body).splitlines())

    ledger = Ledger(filled, instance="c", clock=lambda: NOW)
    through, count = listed()
    assert (through, count) == (None, 50)
    assert main(["usage", "archive", filled, "--before", BEFORE, "--output", str(tmp_path / "out")]) == 0
    through, left = listed()
    with snapshot(filled) as database:
        [(highest, moved)] = database.execute("SELECT through, requests FROM archives")
    assert (through, left) == (str(highest), count - moved)
    ledger.close()


def test_what_is_refused(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    Ledger(where).close()
    this_month = f"{datetime.now(UTC):%Y-%m}"
    assert main(["usage", "archive", where, "--before", f"{this_month}-02", "--output", out]) == 2
    assert f"whose budgets are still open: name {this_month}-01 or earlier" in capsys.readouterr().err
    assert main(["usage", "archive", where, "--before", "2026-13-01", "--output", out]) == 2
    assert "write a day as YYYY-MM-DD" in capsys.readouterr().err
    assert not Path(out).exists()


def test_undelivered_rows_wait_for_the_webhook(filled: str, tmp_path: Path) -> None:
    with second_connection(filled) as database:
        [(last,)] = database.execute("SELECT max(sequence) FROM requests WHERE day < ?", (BEFORE,))
    database = connect(filled, Options())
    database.execute("INSERT INTO cursors VALUES ('webhook:abc', ?)", (last - 1,))
    with pytest.raises(ConfigError, match=f"webhook:abc has had rows up to {last - 1} and rows up to {last} would"):
        moving.prepare(database, tmp_path / "out", BEFORE, "csv")
    assert not (tmp_path / "out").exists()
    assert moving.prepare(database, tmp_path / "out", BEFORE, "csv", undelivered=True)
    database.close()


def test_a_changed_file_and_another_ledgers_archive_are_refused(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, all_rows = tmp_path / "out", rows(filled)
    command = ["usage", "archive", filled, "--before", BEFORE, "--output", str(out)]
    with monkeypatch.context() as context:
        killed_in("_register", context, 0)
        with pytest.raises(Killed):
            main(command)
    file = out / "usage-2026-10.csv.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(command) == 2
    assert f"{file} is not the file that was archived: its SHA-256 differs" in capsys.readouterr().err
    file.write_bytes(whole)
    manifest = out / "manifest.json"
    said = json.loads(manifest.read_text())
    said["selection"]["tokens"] += 1
    manifest.write_text(json.dumps(said))
    assert main(command) == 2
    assert "it is an archive of another ledger" in capsys.readouterr().err
    assert rows(filled) == all_rows


@pytest.mark.parametrize(
    "change", [{"kind": "another"}, {"columns": ["day"]}, {"files": [("../secret", 1, 1, "")]}], ids=str
)
def test_a_foreign_manifest_is_refused_before_any_file_is_opened(change: dict[str, Any], tmp_path: Path) -> None:
    selection = {"before": BEFORE, "through": 9}
    fields = ("name", "rows", "bytes", "sha256")
    said: dict[str, Any] = {"kind": KIND, "form": "csv", "columns": COLUMNS, "selection": selection}
    files = change.get("files", [("missing", 1, 1, "")])
    said |= {**change, "files": [dict(zip(fields, file, strict=True)) for file in files]}
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("not the archive's")
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="is not a manifest of `secateur usage archive`"):
        read(tmp_path / "out")
