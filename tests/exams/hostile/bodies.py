"""Fuzzed bodies for each endpoint that reads one, drawn by hypothesis."""

import http.client
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.exams.hostile.peers import ASK

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CHAT = ("messages", "stream", "stop", "seed", "temperature", "top_p", "n", "max_tokens", "stream_options", "logit_bias")
WIDGET = ("text", "message", "context", "replace", "role", "skill", "key", "resume", "identity", "reply", "rating")
SEEDS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": (ASK, CHAT),
    "/v1/widget/session": ({"skill": "help"}, WIDGET),
    "/v1/widget/messages": ({"text": "hi"}, WIDGET),
    "/v1/widget/feedback": ({"reply": "rep_x", "rating": "up"}, WIDGET),
}
ALLOWED = {200, 204, 400, 401, 403, 404, 409, 413, 429}


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """Bytes, arbitrary JSON, and the path's own fields with arbitrary values."""
    seed, fields = SEEDS[path]
    mixed = st.dictionaries(st.sampled_from(fields), values).map(lambda value: json.dumps({**seed, **value}).encode())
    return st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()) | mixed


def fuzz(url: str, path: str, headers: Callable[[], Mapping[str, str]], examples: int) -> dict[int, int]:
    """Post `examples` bodies; returns the count of each status, and fails at one that is not allowed.

    `headers` makes the credentials, anew whenever they have expired.
    """
    counts: dict[int, int] = {}
    poster = Poster(url, path, headers)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(bodies(path))
    def post(body: bytes) -> None:
        status, content = poster.post(body)
        counts[status] = counts.get(status, 0) + 1
        assert status in ALLOWED, (status, body, content)

    post()
    poster.close()
    return counts


class Poster:
    """Posts over a kept-alive connection, as browsers do."""

    def __init__(self, url: str, path: str, headers: Callable[[], Mapping[str, str]]) -> None:
        self._netloc, self._path, self._renew = urlsplit(url).netloc, path, headers
        self._headers = dict(headers())
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and content; reconnects if the server closed the idle connection."""
        try:
            status, content = self._post(body)
        except (ConnectionError, http.client.HTTPException):
            self.close()
            status, content = self._post(body)
        if status == 401:  # a widget's token expires after minutes
            self._headers = dict(self._renew())
            return self._post(body)
        return status, content

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _post(self, body: bytes) -> tuple[int, bytes]:
        self._connection = self._connection or http.client.HTTPConnection(self._netloc, timeout=120)
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        return response.status, response.read()


def rows(ledger: Path) -> int:
    """Number of rows in the ledger."""
    with closing(sqlite3.connect(ledger)) as database:
        count: int = database.execute("SELECT count(*) FROM requests").fetchone()[0]
    return count
