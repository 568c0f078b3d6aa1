"""Compares counters stored by Prometheus with the ledger: detects a ledger restored from an old backup.

A sample must lie between what was settled a minute before its scrape and what the ledger has now; while no reply ends,
the two are equal.
"""

import http.client
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from server.errors import ConfigError
from server.metering.reconcile import METRICS, Sums, named, settled, totals
from server.storage.database import Database

WINDOW = "5m"
SLACK = 60.0  # seconds between the end of a reply and its commit, at most
TIMEOUT = 30


class Sample(NamedTuple):
    """The latest value of one series, and when it was scraped, in seconds since 1970."""

    labels: Mapping[str, str]
    moment: float
    value: float


class Stored(NamedTuple):
    """A server's counters in Prometheus, by the ledger's table, and when it was last scraped."""

    moment: float
    counters: dict[str, Sums]


def against_prometheus(database: Database, url: str, servers: Mapping[str, Stored]) -> list[str]:
    """A sentence for each counter in `servers` that contradicts the ledger; take the snapshot after `stored(url)`."""
    now = totals(database)
    found = []
    for instance, (moment, counters) in servers.items():
        before = settled(database, instance, moment - SLACK)
        for metric, table, _ in METRICS:
            for key in sorted({*counters[table], *before[table]}):
                value, least, most = counters[table][key], before[table][key], now[table][key]
                if not least <= value <= most:
                    found.append(f"{metric} {named(key)}: {url} says {value}, the ledger {most}")
    return found


def stored(url: str) -> dict[str, Stored]:
    """The stored counters by instance name; raises ConfigError if there are none to compare."""
    names = {_target(sample): sample.labels.get("instance_name", "") for sample in _latest(url, "secateur_ledger_info")}
    found = {name: Stored(0.0, {table: Sums() for _, table, _ in METRICS}) for name in names.values()}
    for metric, table, labels in METRICS:
        for labelled, moment, value in _latest(url, metric):
            name = names.get(_target(Sample(labelled, moment, value)))
            if name is not None:
                found[name].counters[table][(name, *(labelled[label] for label in labels))] = int(value)
                found[name] = found[name]._replace(moment=max(moment, found[name].moment))
    if not any(server.moment for server in found.values()):
        raise ConfigError(f"{url} has scraped no secateur in the last {WINDOW}")
    return found


def _target(sample: Sample) -> tuple[str, str]:
    return sample.labels.get("job", ""), sample.labels.get("instance", "")


def _latest(url: str, metric: str) -> Iterator[Sample]:
    query = urllib.parse.urlencode({"query": f"{metric}[{WINDOW}]"})
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query?{query}", timeout=TIMEOUT) as answer:
            series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        for one in series:
            moment, value = one["values"][-1]
            yield Sample(one["metric"], float(moment), float(value))
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        raise ConfigError(f"{url} cannot be queried as a Prometheus: {getattr(error, 'reason', error)}") from None
