"""Exports, the sums behind them, and the proof that both agree, or the sentence that says where they do not."""

import csv
import http.client
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from server.commands.__main__ import main
from server.commands.ledger import usage as command
from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Opening, Outcome, Settlement, Usage
from server.metering.usage import ROW, Span, rows
from server.skills.skill import Skill
from tests.server.web.test_budgets import ASK, ask
from tests.support.harness import Serve, Served

DAY = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def filled(where: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A ledger with replies of two days, and the same as a plain list."""
    moment = [DAY]
    ledger = Ledger(where, clock=lambda: moment[0])
    draw, plain = random.Random(3), []
    outcomes: tuple[Outcome, ...] = ("stop", "length", "client_gone")
    for index in range(60):
        moment[0] = DAY + 86400 * (index // 30)
        reply: dict[str, Any] = {
            "skill": draw.choice("ab"),
            "model": "m",
            "key": draw.choice(["", "k1"]),
            "outcome": draw.choice(outcomes),
        }
        reply |= {"prompt": draw.randrange(1, 50), "output": draw.randrange(50), "day": f"2026-11-{24 + index // 30}"}
        name = f"r{index}"
        ledger.open(Opening(name, reply["skill"], "m", reply["prompt"], 60, key_id=reply["key"])).result()
        usage = Usage(reply["prompt"], reply["prompt"] // 2, reply["output"])
        ledger.settle(Settlement(name, usage, reply["outcome"], reply["skill"], reply["day"], 0.5, 0.1)).result()
        plain.append(reply)
    ledger.open(Opening("open", "a", "m", 1, 1)).result()  # under way: in no export
    yield where, plain
    ledger.close()


def test_sums_by_anything_equal_those_of_the_plain_list(
    filled: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    where, plain = filled
    for by in (["skill"], ["skill", "day"], ["model"], ["key"], ["outcome", "skill"], ["day"]):
        assert main(["usage", where, "--by", ",".join(by), "--format", "jsonl"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row in found:
            same = [reply for reply in plain if all(reply[name] == row[name] for name in by)]
            assert row["requests"] == len(same)
            assert row["input_tokens"] == sum(reply["prompt"] for reply in same)
            assert row["cached_tokens"] == sum(reply["prompt"] // 2 for reply in same)
            assert row["output_tokens"] == sum(reply["output"] for reply in same)
        assert sum(row["requests"] for row in found) == 60
    assert main(["usage", where, "--since", "2026-11-25", "--by", "day"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["day", "requests", "input_tokens", "cached_tokens", "output_tokens"]
    assert line.split()[:2] == ["2026-11-25", "30"]


def test_rows_resume_where_an_export_ended(
    filled: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    where, plain = filled
    with snapshot(where) as database:
        first = rows(database, 0, 25)
        rest = rows(database, first[-1][0], 1000)
    assert [row[0] for row in first + rest] == list(range(1, 61))
    assert [row[ROW.index("output_tokens")] for row in first + rest] == [reply["output"] for reply in plain]
    assert main(["usage", where, "--after", "57", "--format", "csv"]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["request_id"] for row in table] == ["r57", "r58", "r59"]
    assert table[0]["closed_at"] == "2026-11-25T12:00:00.500+00:00"
    assert main(["usage", where, "--after", "20", "--until", "2026-11-24"]) == 0
    assert [json.loads(line)["sequence"] for line in capsys.readouterr().out.splitlines()] == list(range(21, 31))
    assert main(["usage", where, "--after", "20", "--by", "skill"]) == 2
    assert "--after lists rows and --by adds them up: give one of them" in capsys.readouterr().err
    for odd in ("9" * 20, "-1", "²"):
        with pytest.raises(SystemExit) as left:
            main(["usage", where, f"--after={odd}"])
        assert left.value.code == 2
        assert "argument --after: invalid sequence value" in capsys.readouterr().err


def test_one_reply_is_found_by_any_of_its_ids(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An auditor has the id of a response, and asks what was charged, and who counted it."""
    name, day = f"req_{'0' * 31}7", str(datetime.now(UTC).date())
    with closing(Ledger(where)) as ledger:
        ledger.open(Opening("open", "a", "m", 1, 1)).result()
        ledger.open(Opening("r7", "a", "m", 3, 20)).result()
        ledger.settle(Settlement("r7", Usage(3, 0, 2), "stop", "a", day)).result()
        ledger.open(Opening(name, "a", "m", 9, 20, usage_from="pieces")).result()
        ledger.settle(Settlement(name, Usage(9, 0, 4), "stop", "a", day, usage_from="backend")).result()
        for reply in (name, name.replace("req_", "chatcmpl-"), name.replace("req_", "msg_")):
            assert main(["usage", where, "--request", reply]) == 0
            row = json.loads(capsys.readouterr().out)
            assert (row["request_id"], row["output_tokens"], row["usage_from"]) == (name, 4, "backend")
        assert main(["usage", where, "--request", "r7", "--format", "csv"]) == 0
        [found] = csv.DictReader(capsys.readouterr().out.splitlines())
        assert (found["output_tokens"], found["usage_from"]) == ("2", "ids")
        assert main(["usage", where, "--request", "open"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "open"
    assert main(["usage", where, "--request", "r77"]) == 2
    assert "The ledger has no reply 'r77': give its X-Request-Id" in capsys.readouterr().err
    for more in (["--after", "0"], ["--by", "skill"], ["--since", "2026-11-24"]):
        assert main(["usage", where, "--request", "r7", *more]) == 2
        assert "--request prints one reply: leave out" in capsys.readouterr().err


def test_an_export_of_many_rows_holds_no_transaction_open(
    filled: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader of the pipe would keep SQLite's write-ahead log growing, and PostgreSQL from vacuuming."""
    where, _ = filled
    monkeypatch.setattr(command, "MOST_ROWS", 7)
    taken, opened = [], 0

    @contextmanager
    def watched(where: str) -> Iterator[Any]:
        nonlocal opened
        opened += 1
        with snapshot(where) as database:
            yield database
        opened -= 1

    monkeypatch.setattr(command, "snapshot", watched)
    for row in command.every_row(where, 0, Span()):
        assert opened == 0
        taken.append(row[0])
    assert taken == list(range(1, 61))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            "UPDATE tokens SET value = value + 1 WHERE skill = 'a' AND type = 'output'",
            "tokens a/m/output: the rows add",
        ),
        ("UPDATE budgets SET used = used - 1 WHERE period = '2026-11-24' AND skill = 'b'", "budget used b/2026-11-24"),
        ("UPDATE budgets SET reserved = 9 WHERE period = '2026-11' AND skill = 'b'", "budget reserved b/2026-11:"),
        ("UPDATE requests SET output_tokens = output_tokens + 1 WHERE request_id = 'r3'", "the ledger says"),
        ("DELETE FROM requests WHERE request_id = 'r59'", "sequence: 59 closed rows, the highest number is 59, the"),
        ("DELETE FROM outcomes WHERE skill = 'a'", "requests a/m/"),
    ],
)
def test_reconcile_finds_each_difference(
    tmp_path: Path,
    filled: tuple[str, list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    damage: str,
    sentence: str,
) -> None:
    where, _ = filled
    assert main(["reconcile", where]) == 0
    assert capsys.readouterr().out == "61 rows, 0 differences\n"
    if where.startswith("postgres"):
        import psycopg

        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(damage)  # type: ignore[call-overload, unused-ignore]
    else:
        with closing(sqlite3.connect(where)) as database, database:
            database.execute(damage)
    assert main(["reconcile", where]) == 1
    assert sentence in capsys.readouterr().out
    assert main(["reconcile", where, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["notes"]) == (61 - damage.startswith("DELETE FROM requests"), [])
    assert any(sentence in difference for difference in told["differences"])


def get(served: Served, path: str) -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection(urlsplit(served.admin).netloc, timeout=120)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def test_the_admin_listener_serves_usage_and_the_public_one_does_not(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve("Good day.", slots=2)
    for _ in range(3):
        ask(served, ASK)
    status, headers, text = get(served, "/admin/usage?by=skill,model,key&format=csv")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    [row] = csv.DictReader(text.splitlines())
    assert (row["skill"], row["model"], row["requests"]) == ("help", "tiny", "3")
    status, headers, text = get(served, "/admin/usage?after=1&limit=1")
    assert headers["x-next-after"] == "2"
    [row] = map(json.loads, text.splitlines())
    assert (row["sequence"], row["revision"]) == (2, _help(served).revision)
    name = row["request_id"]
    status, headers, text = get(served, f"/admin/usage?request={name.replace('req_', 'chatcmpl-')}")
    assert (status, json.loads(text)["request_id"], json.loads(text)["usage_from"]) == (200, name, "ids")
    assert "x-next-after" not in headers
    assert get(served, "/admin/usage?request=req_0")[0] == 404
    assert get(served, "/admin/usage?after=3")[1]["x-next-after"] == "3"
    for query in (
        "after=0&by=skill",
        "limit=5",
        "after=0&since=today",
        "by=prompt",
        "since=yesterday",
        "limit=-1&after=0",
        "format=xml",
        "page=1",
        f"request={name}&by=skill",
    ):
        assert get(served, f"/admin/usage?{query}")[0] == 400
    with closing(http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=120)) as connection:
        connection.request("GET", "/admin/usage")
        assert connection.getresponse().status == 404
    assert main(["reconcile", served.parts.config.ledger, "--metrics", f"{served.admin}/metrics"]) == 0
    with closing(sqlite3.connect(served.parts.config.ledger)) as database, database:
        database.execute("UPDATE tokens SET value = value + 1 WHERE type = 'output'")
    capsys.readouterr()
    assert main(["reconcile", served.parts.config.ledger]) == 1


def _help(served: Served) -> Skill:
    skill = served.parts.skills.get("help")
    assert skill
    return skill
