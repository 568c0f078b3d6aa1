"""Reads the ledger for people and programs: sums by skill, day, model or key, and single rows.

Rows are numbered in the order of their commits and without gaps, so an export resumes after the last number it has.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from server.errors import InvalidRequest
from server.metering.ledger.schema import SUMMED, closed_sums
from server.storage.database import Database

Format = Literal["csv", "jsonl"]
MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
GROUPS = {"skill": "skill", "day": "day", "month": "substr(day, 1, 7)", "model": "model", "key": "key_id",
          "outcome": "outcome", "revision": "revision", "usage_from": "usage_from"}  # fmt: skip
SUMS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
ROW = ("sequence", "request_id", "instance", "skill", "revision", "model", "key_id", "state", "outcome", "day",
       "opened_at", "closed_at", "prompt_tokens", "cached_tokens", "output_tokens", "first_token_seconds",
       "duration_seconds", "usage_from")  # fmt: skip
MOST_ROWS = 10_000


class Span(Struct, frozen=True):
    """From day to day, both included, YYYY-MM-DD in UTC; empty is unbounded."""

    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for name, day in (("since", self.since), ("until", self.until)):
            if day:
                _check_day(name, day)

    @property
    def days(self) -> tuple[str, str]:
        """The first and last day, for comparison in SQL."""
        return self.since, self.until or "9999-12-31"


EVER = Span()


def columns(by: Sequence[str]) -> tuple[str, ...]:
    """The column names of the rows of `grouped`: those of `by`, then the sums."""
    return (*by, *SUMS)


def grouped(database: Database, by: Sequence[str], span: Span) -> list[tuple[Any, ...]]:
    """Closed replies and their tokens, summed for each value of `by`; raises InvalidRequest for an unknown name."""
    for name in by:
        if name not in GROUPS:
            raise InvalidRequest(f"{name!r} is not a column to group by; allowed are {', '.join(GROUPS)}.", param="by")
    names = [GROUPS[name] for name in by]
    order = f" GROUP BY {', '.join(names)} ORDER BY {', '.join(names)}" if names else ""
    sums = ", ".join(f"sum({name})" for name in SUMMED)
    statement = f"SELECT {', '.join([*names, sums])} FROM {closed_sums(database)} WHERE day >= ? AND day <= ?"
    found = database.execute(statement + order, span.days)
    return [(*row[: len(names)], *(int(value or 0) for value in row[len(names) :])) for row in found]


def sequence(text: str) -> int:
    """`text` as a sequence number of at most 18 digits; raises ValueError."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError
    return int(text)


def rows(database: Database, after: int, most: int = MOST_ROWS, span: Span = EVER) -> list[tuple[Any, ...]]:
    """Up to `most` closed rows of `span` numbered above `after`, with the columns ROW; times in ISO 8601."""
    condition = "sequence > ? AND day >= ? AND day <= ? ORDER BY sequence LIMIT ?"
    return _rows(database, condition, (after, *span.days, most))


def row_of(database: Database, reply: str) -> list[tuple[Any, ...]]:
    """The row of one reply, closed or under way, with the columns ROW; empty if the ledger has none.

    `reply` is its X-Request-Id, or the id in the response of any API, as chatcmpl-..., which has the same digits.
    """
    return _rows(database, "request_id IN (?, ?)", (reply, f"req_{re.split('[-_]', reply)[-1]}"))


def no_row(database: Database, reply: str) -> str:
    """The sentence for a reply that `row_of` does not find."""
    through = archived_through(database)
    moved = f"; rows numbered up to {through} were archived" if through else ""
    return f"The ledger has no reply {reply[:80]!r}{moved}: give its X-Request-Id, or the id in the response."


def _rows(database: Database, condition: str, values: Sequence[str | int]) -> list[tuple[Any, ...]]:
    """The rows of replies under a condition in SQL, with the columns ROW; times in ISO 8601."""
    names = ", ".join(ROW) if "daily" in database.tables() else ", ".join(ROW).replace("usage_from", "'ids'")
    opened, closed = ROW.index("opened_at"), ROW.index("closed_at")
    return [
        tuple(_time(value) if index in (opened, closed) else value for index, value in enumerate(row))
        for row in database.execute(f"SELECT {names} FROM requests WHERE {condition}", values)
    ]


def archived_through(database: Database) -> int:
    """The highest number of an archived row, 0 if there is none: `rows` from below it may lack some."""
    if "archives" not in database.tables():
        return 0
    [(through,)] = database.execute("SELECT coalesce(max(through), 0) FROM archives")
    return int(through)


def written(names: Sequence[str], values: Iterable[Sequence[Any]], form: Format) -> Iterator[str]:
    """Format rows as CSV with a header, or as one JSON object a line; yields the lines."""
    if form == "jsonl":
        for row in values:
            yield msgspec.json.encode(dict(zip(names, row, strict=True))).decode() + "\n"
        return
    for row in (names, *values):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in row])
        yield line.getvalue()


def table(names: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """The rows as a table for a terminal: text aligned left, numbers right."""
    cells = [[*names], *([f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in values)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(names))]
    numeric = [name in SUMS for name in names]
    lines = (
        "  ".join(
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _check_day(name: str, day: str) -> None:
    try:
        if datetime.strptime(day, "%Y-%m-%d").strftime("%Y-%m-%d") == day:
            return
    except ValueError:
        pass
    raise InvalidRequest(f"{name} is {day[:20]!r}; write a day as YYYY-MM-DD.", param=name)
