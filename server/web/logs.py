"""What the process writes to its log: text or JSON lines, with request ids, and never a word of a prompt or reply.

Facts of a record travel in `extra={"facts": {...}}`, so that they are fields in JSON and name=value in text.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from server.config import Format, Level

SELDOM_SECONDS = 60.0
QUIET = ("sse_starlette", "httpcore", "httpx", "urllib3", "asyncio")  # some of these write what they carry at DEBUG


class Text(logging.Formatter):
    """One readable line, and the traceback of an error below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """The message, then its facts."""
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in _facts(record).items())])


class JsonLines(logging.Formatter):
    """One JSON object a line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as an object; line breaks within it are escaped, so that no message can forge a line."""
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


class Seldom(logging.Filter):
    """Lets each warning through once a minute: requests that are no HTTP would fill a disk with theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is another level, or was not said lately."""
        if record.levelno != logging.WARNING:
            return True
        if record.created - self._said.get(record.msg, 0.0) < SELDOM_SECONDS:
            return False
        self._said[record.msg] = record.created
        return True


def configure(form: Format, level: Level) -> None:
    """Send this process's log to the standard error, in this form, from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").filters = [Seldom()]
    quieten()


def quieten() -> None:
    """Keep libraries that log request or reply text at DEBUG from doing so."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    return facts
