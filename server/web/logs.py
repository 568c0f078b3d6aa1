"""The process's log on standard error, as text or JSON lines; never with text of prompts or replies.

A record's facts, passed as `extra={"facts": {...}}`, become fields in JSON and name=value in text.
"""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from server.config import Format, Level

TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace of the request in whose context a line is logged, as hexadecimal digits; empty without `traces`."""
SELDOM_SECONDS = 60.0
# Strangers can cause the warnings of these.
SELDOM = ("uvicorn.error", "server.web.http.connections", "server.web.http.problems")
QUIET = ("sse_starlette", "httpcore", "httpx", "urllib3", "asyncio")  # some log bodies at DEBUG


class Text(logging.Formatter):
    """One line per record, with an error's traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """The message, followed by its facts."""
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in _facts(record).items())])


class JsonLines(logging.Formatter):
    """One JSON object per line, with tracebacks as a field."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, which escapes line breaks: no message can forge a line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class OncePerMinute(logging.Filter):
    """Passes each warning once a minute: a port scanner's invalid requests could fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record: another level, or not logged within SELDOM_SECONDS."""
        if record.levelno != logging.WARNING:
            return True
        if record.created - self._logged.get(record.msg, 0.0) < SELDOM_SECONDS:
            return False
        self._logged[record.msg] = record.created
        return True


def configure(form: Format, level: Level) -> None:
    """Log to standard error in this form, from this level up; replaces earlier handlers."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in SELDOM:
        logging.getLogger(name).filters = [OncePerMinute()]
    quieten()


def quieten() -> None:
    """Keep libraries that log request or reply text at DEBUG from doing so."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    trace = TRACE_ID.get()
    return {**facts, "trace_id": trace} if trace else facts
