"""GET /admin/usage on the admin listener: sums or rows of the ledger, as CSV or JSON lines."""

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.errors import InvalidRequest, NotFound
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable
from server.metering.usage import (
    MEDIA_TYPES,
    MOST_ROWS,
    ROW,
    Format,
    Span,
    archived_through,
    columns,
    grouped,
    no_row,
    row_of,
    rows,
    sequence,
    written,
)
from server.storage.database import StorageError

KNOWN = ("by", "since", "until", "after", "limit", "request", "format")


class UsageEndpoint:
    """`by=skill,day` sums; `after=N` lists up to `limit` rows numbered above N; `since` and `until` bound the days.

    `request=ID` shows the row of one reply.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def get(self, request: Request) -> Response:
        """The text; for rows, X-Next-After is the next request's `after`, and X-Archived-Through the last archived row.

        Raises InvalidRequest, LedgerUnavailable, and NotFound for a reply that is not there.
        """
        form = format_of(request.query_params)
        try:
            names, values, through = await run_in_threadpool(self._read, dict(request.query_params))
        except StorageError as error:
            raise LedgerUnavailable(str(error)) from None
        headers = {"Cache-Control": "no-store"}
        if names == ROW and "request" not in request.query_params:
            headers["X-Next-After"] = str(values[-1][0] if values else number(request.query_params, "after", 0))
        if through:
            headers["X-Archived-Through"] = str(through)
        return Response("".join(written(names, values, form)), headers=headers, media_type=MEDIA_TYPES[form])

    def _read(self, query: Mapping[str, str]) -> tuple[tuple[str, ...], list[tuple[Any, ...]], int]:
        for name in query:
            if name not in KNOWN:
                raise InvalidRequest(
                    f"There is no parameter {name[:40]!r}; there are {', '.join(KNOWN)}.", param=name[:40]
                )
        if "request" in query:
            return ROW, self._row(query), 0
        other = "by" if "after" in query else "limit"
        if other in query:
            raise InvalidRequest("`after` and `limit` list rows and `by` adds them up: give one of them.", param=other)
        span = Span(query.get("since", ""), query.get("until", ""))
        with self._ledger.snapshot() as database:
            if "after" in query:
                found = rows(database, number(query, "after", 0), number(query, "limit", MOST_ROWS), span)
                return ROW, found, archived_through(database)
            by = tuple(name for name in query.get("by", "skill").split(",") if name)
            return columns(by), grouped(database, by, span), 0

    def _row(self, query: Mapping[str, str]) -> list[tuple[Any, ...]]:
        for other in sorted(set(query) - {"request", "format"}):
            raise InvalidRequest("`request` shows one reply: give it alone, or with `format`.", param=other)
        with self._ledger.snapshot() as database:
            if not (found := row_of(database, query["request"])):
                raise NotFound(no_row(database, query["request"]), param="request")
        return found


def format_of(query: Mapping[str, str]) -> Format:
    """The query's format: csv, or by default jsonl."""
    match query.get("format", "jsonl"):
        case "csv":
            return "csv"
        case "jsonl":
            return "jsonl"
    raise InvalidRequest("format must be csv or jsonl.", param="format")


def number(query: Mapping[str, str], name: str, default: int) -> int:
    """A parameter as a whole number from 0 up; `limit` is capped at MOST_ROWS."""
    try:
        value = sequence(query.get(name, str(default)))
    except ValueError:
        raise InvalidRequest(f"{name} must be a whole number.", param=name) from None
    return min(value, MOST_ROWS) if name == "limit" else value
