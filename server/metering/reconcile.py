"""Recomputes the ledger's totals, budgets and row numbers from its rows and names each difference.

Optionally compares the counters on a server's /metrics too.
"""

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from server.errors import ConfigError
from server.metering.ledger.archive.files import Archive, rows_of
from server.metering.ledger.records import KINDS
from server.metering.ledger.schema import GROUPED, SUMMED
from server.storage.database import Database

Sums = Counter[tuple[Any, ...]]
Rows = dict[tuple[Any, ...], tuple[int, ...]]
"""The sums SUMMED by the columns GROUPED."""
TIMEOUT = 30
METRICS = (("secateur_tokens_total", "tokens", ("skill", "model", "type")),
           ("secateur_requests_total", "outcomes", ("skill", "model", "outcome")))  # fmt: skip
ARCHIVED = ", ".join(f"archived_{name}" for name in SUMMED)


def differences(database: Database) -> list[str]:
    """A sentence for each stored sum that differs from the sum of its rows, those of archives included."""
    rows = closed(database)
    found = [
        *_compare("tokens", _tokens(rows), _sums(database, "SELECT instance, skill, model, type, value FROM tokens")),
        *_compare("requests", _outcomes(rows), _sums(database, "SELECT * FROM outcomes")),
    ]
    for table, owner, what in (("budgets", "skill", "budget"), ("key_budgets", "key_id", "key budget")):
        for column, expected in (("used", _used(rows, owner)), ("reserved", _reserved(database, owner))):
            stored = _sums(database, f"SELECT {owner}, period, {column} FROM {table}")
            found += _compare(f"{what} {column}", expected, stored)
    return [*found, *_daily(database, rows), *_archives(database), *_numbers(database)]


def unfinished(database: Database) -> list[str]:
    """A sentence for each archive whose rows have not all left the ledger; no sum differs because of it."""
    if "archives" not in database.tables():
        return []
    statement = "SELECT name, requests, requests - moved_requests FROM archives WHERE moved_requests < requests"
    return [
        f"the archive {name} is not finished: {left} of its {rows} rows are still in the ledger; repeat its command"
        for name, rows, left in database.execute(statement)
    ]


def against_archives(database: Database, archives: Sequence[Archive]) -> list[str]:
    """A sentence for each sum of archived rows that differs from the rows in these files; all archives must be named.

    Raises ConfigError for a folder that is not this ledger's archive, and for an archive that is not named.
    """
    known = dict(database.execute("SELECT digest, name FROM archives"))
    for archive in archives:
        if known.pop(archive.digest, None) is None:
            raise ConfigError(f"{archive.folder} is not an archive of this ledger")
    if known:
        raise ConfigError(f"name all archives of this ledger: {', '.join(known.values())} is missing")
    rows: Rows = {}
    for archive in archives:
        for row in rows_of(archive):
            key = tuple(row[name] for name in GROUPED)
            values = (1, row["prompt_tokens"], row["cached_tokens"], row["output_tokens"])
            rows[key] = tuple(map(sum, zip(rows.get(key, (0, 0, 0, 0)), values, strict=True)))
    stored = _rows(database, f"SELECT {', '.join(GROUPED)}, {ARCHIVED} FROM daily WHERE archived_requests > 0")
    return [
        f"archived {named(key)}: the files add up to {rows.get(key)}, the ledger says {stored.get(key)}"
        for key in sorted(rows.keys() | stored.keys())
        if rows.get(key) != stored.get(key)
    ]


def against_metrics(read: Callable[[], Mapping[str, Sums]], url: str, admin_key: str = "") -> list[str]:
    """A sentence for each counter of a server that differs from its instance's totals, which `read` returns by table.

    Counters only grow: while replies end, a scrape must lie between the totals before and after it.
    """
    before, (instance, scraped), after = read(), scrape(url, admin_key), read()
    found = []
    for metric, table, _ in METRICS:
        for key in sorted(
            {key for key in after[table] if key[0] == instance} | {(instance, *k) for k in scraped[metric]}
        ):
            value = scraped[metric][key[1:]]
            if not before[table][key] <= value <= after[table][key]:
                found.append(f"{metric} {named(key)}: {url} says {value}, the ledger {after[table][key]}")
    return found


def totals(database: Database) -> dict[str, Sums]:
    """The stored totals by table, then by (instance, skill, model, type or outcome)."""
    return {table: _sums(database, f"SELECT * FROM {table}") for table in ("tokens", "outcomes")}


def settled(database: Database, instance: str, moment: float) -> dict[str, Sums]:
    """Like `totals`, summed over the rows of one instance that were closed by `moment`."""
    rows = {key: sums for key, sums in closed(database, " AND closed_at <= ?", (moment,)).items() if key[1] == instance}
    return {"tokens": _tokens(rows), "outcomes": _outcomes(rows)}


def closed(database: Database, which: str = "", values: Sequence[Any] = ()) -> Rows:
    """The sums of closed rows by GROUPED: of those in the ledger, all or `which`, and of all that were archived."""
    sums = "count(*), sum(prompt_tokens), sum(cached_tokens), sum(output_tokens)"
    names = ", ".join(GROUPED)
    if "daily" not in database.tables():  # before version 4
        names = names.replace("usage_from", "'ids'")
    found = _rows(
        database, f"SELECT {names}, {sums} FROM requests WHERE state <> 'open'{which} GROUP BY {names}", values
    )
    if "daily" in database.tables():
        for key, more in _rows(database, f"SELECT {names}, {ARCHIVED} FROM daily WHERE archived_requests > 0").items():
            found[key] = tuple(map(sum, zip(found.get(key, (0, 0, 0, 0)), more, strict=True)))
    return found


def scrape(url: str, key: str = "") -> tuple[str, dict[str, Sums]]:
    """The instance name and counters on the /metrics at `url`, fetched with the admin key `key`; raises ConfigError."""
    try:
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        hint = "; `--key-file` names a file with an admin key" if getattr(error, "code", 0) in (401, 403) else ""
        raise ConfigError(f"{url} cannot be read: {getattr(error, 'reason', error)}{hint}") from None
    counters: dict[str, Sums] = {metric: Counter() for metric, *_ in METRICS}
    labels = {metric: names for metric, _, names in METRICS}
    instance = None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in counters:
                counters[sample.name][tuple(sample.labels[name] for name in labels[sample.name])] = int(sample.value)
            if sample.name == "secateur_ledger_info":
                instance = sample.labels["instance_name"]
    if instance is None:
        raise ConfigError(f"{url} is not the /metrics of a secateur")
    return instance, counters


def _compare(what: str, expected: Sums, stored: Sums) -> Iterator[str]:
    for key in sorted(expected.keys() | stored.keys()):
        if expected[key] != stored[key]:
            yield f"{what} {named(key)}: the rows add up to {expected[key]}, the ledger says {stored[key]}"


def _tokens(rows: Rows) -> Sums:
    found: Sums = Counter()
    for (_, instance, skill, _, model, *_), (_, *tokens) in rows.items():
        for kind, value in zip(KINDS, tokens, strict=True):
            found[instance, skill, model, kind] += value
    return found


def _outcomes(rows: Rows) -> Sums:
    found: Sums = Counter()
    for (_, instance, skill, _, model, _, outcome, _), (requests, *_) in rows.items():
        found[instance, skill, model, outcome] += requests
    return found


def _used(rows: Rows, owner: str) -> Sums:
    """Tokens of closed rows by skill, or by key, and period."""
    found: Sums = Counter()
    for key, (_, prompt, _, output) in rows.items():
        if name := key[GROUPED.index(owner)]:
            for period in (key[0], key[0][:7]):
                found[name, period] += prompt + output
    return found


def _reserved(database: Database, owner: str) -> Sums:
    """Reserved tokens of open rows by skill, or by key, and period."""
    found: Sums = Counter()
    for period in ("day", "substr(day, 1, 7)"):
        statement = (
            f"SELECT {owner}, {period}, sum(reserved_tokens) FROM requests WHERE state = 'open' AND {owner} <> '' "
            f"GROUP BY {owner}, {period}"
        )
        found.update(_sums(database, statement))
    return found


def _daily(database: Database, rows: Rows) -> Iterator[str]:
    if "daily" not in database.tables():
        return
    stored = _rows(database, f"SELECT {', '.join((*GROUPED, *SUMMED))} FROM daily")
    for key in sorted(rows.keys() | stored.keys()):
        if rows.get(key) != stored.get(key):
            yield f"daily {named(key)}: the rows add up to {rows.get(key)}, the ledger says {stored.get(key)}"


def _archives(database: Database) -> Iterator[str]:
    if "archives" not in database.tables():
        return
    sums = "coalesce(sum(archived_requests), 0), coalesce(sum(archived_prompt_tokens + archived_output_tokens), 0)"
    [kept] = database.execute(f"SELECT {sums} FROM daily")
    [moved] = database.execute("SELECT coalesce(sum(moved_requests), 0), coalesce(sum(moved_tokens), 0) FROM archives")
    if kept != moved:
        yield "archived rows: {} with {} tokens in the sums by day, {} with {} in the archives".format(*kept, *moved)


def _numbers(database: Database) -> Iterator[str]:
    [(last,)] = database.execute("SELECT value FROM cursors WHERE name = 'sequence'")
    statement = "SELECT count(*), coalesce(max(sequence), 0) FROM requests WHERE state <> 'open'"
    [(count, highest)] = database.execute(statement)
    if "archives" in database.tables():
        statement = "SELECT coalesce(sum(moved_requests), 0), coalesce(max(through), 0) FROM archives"
        [(archived, through)] = database.execute(statement)
        count, highest = count + int(archived), max(highest, through)
    if not last == count == highest:
        yield f"sequence: {count} closed rows, the highest number is {highest}, the counter says {last}"


def _rows(database: Database, statement: str, values: Sequence[Any] = ()) -> Rows:
    size = len(GROUPED)
    return {tuple(row[:size]): tuple(map(int, row[size:])) for row in database.execute(statement, values)}


def _sums(database: Database, statement: str, values: Sequence[Any] = ()) -> Sums:
    return Counter({tuple(row[:-1]): int(row[-1]) for row in database.execute(statement, values)})


def named(key: tuple[Any, ...]) -> str:
    """A series' labels for a sentence, joined by `/`."""
    return "/".join(str(part) for part in key if part != "")
