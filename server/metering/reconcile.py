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
from server.metering.ledger.records import KINDS
from server.storage.database import Database

Sums = Counter[tuple[Any, ...]]
TIMEOUT = 30
METRICS = (("secateur_tokens_total", "tokens", ("skill", "model", "type")),
           ("secateur_requests_total", "outcomes", ("skill", "model", "outcome")))  # fmt: skip
CLOSED = "state <> 'open'"


def differences(database: Database) -> list[str]:
    """A sentence for each stored sum that differs from the sum of its rows."""
    found = [
        *_compare(
            "tokens", _tokens(database), _sums(database, "SELECT instance, skill, model, type, value FROM tokens")
        ),
        *_compare("requests", _outcomes(database), _sums(database, "SELECT * FROM outcomes")),
    ]
    for table, owner, what in (("budgets", "skill", "budget"), ("key_budgets", "key_id", "key budget")):
        for column in ("used", "reserved"):
            stored = _sums(database, f"SELECT {owner}, period, {column} FROM {table}")
            found += _compare(f"{what} {column}", _budget(database, owner, column), stored)
    return [*found, *_numbers(database)]


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
    which = f"{CLOSED} AND instance = ? AND closed_at <= ?"
    values = (instance, moment)
    return {"tokens": _tokens(database, which, values), "outcomes": _outcomes(database, which, values)}


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


def _tokens(database: Database, which: str = CLOSED, values: Sequence[Any] = ()) -> Sums:
    sums = "sum(prompt_tokens), sum(cached_tokens), sum(output_tokens)"
    grouped = f"SELECT instance, skill, model, {sums} FROM requests WHERE {which} GROUP BY instance, skill, model"
    found: Sums = Counter()
    for *names, prompt, cached, output in database.execute(grouped, values):
        for kind, value in zip(KINDS, (prompt, cached, output), strict=True):
            found[(*names, kind)] = int(value)
    return found


def _outcomes(database: Database, which: str = CLOSED, values: Sequence[Any] = ()) -> Sums:
    names = "instance, skill, model, outcome"
    return _sums(database, f"SELECT {names}, count(*) FROM requests WHERE {which} GROUP BY {names}", values)


def _budget(database: Database, owner: str, column: str) -> Sums:
    """`column` of the budgets by skill, or by key, and period, as the rows have it."""
    value, which = (
        ("prompt_tokens + output_tokens", CLOSED) if column == "used" else ("reserved_tokens", "state = 'open'")
    )
    found: Sums = Counter()
    for period in ("day", "substr(day, 1, 7)"):
        statement = (
            f"SELECT {owner}, {period}, sum({value}) FROM requests WHERE {which} AND {owner} <> '' "
            f"GROUP BY {owner}, {period}"
        )
        found.update(_sums(database, statement))
    return found


def _numbers(database: Database) -> Iterator[str]:
    [(last,)] = database.execute("SELECT value FROM cursors WHERE name = 'sequence'")
    [(count, highest)] = database.execute(f"SELECT count(*), coalesce(max(sequence), 0) FROM requests WHERE {CLOSED}")
    if not last == count == highest:
        yield f"sequence: {count} closed rows, the highest number is {highest}, the counter says {last}"


def _sums(database: Database, statement: str, values: Sequence[Any] = ()) -> Sums:
    return Counter({tuple(row[:-1]): int(row[-1]) for row in database.execute(statement, values)})


def named(key: tuple[Any, ...]) -> str:
    """A series' labels for a sentence, joined by `/`."""
    return "/".join(str(part) for part in key if part != "")
