"""The admin page, on the admin listener: usage, budgets, outcomes and latencies from the ledger.

Its Content-Security-Policy forbids loading anything from another origin.
"""

import time
from pathlib import Path

import msgspec
from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable
from server.metering.metrics import Engines, Scope, states
from server.metering.summary import Summary, summarise
from server.storage.database import StorageError
from server.web.access.sessions import Role, Sessions

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
FILES = (
    ("/admin", "admin.html", "text/html"),
    ("/admin/admin.css", "admin.css", "text/css"),
    ("/admin/admin.js", "admin.js", "text/javascript"),
    ("/admin/charts.js", "admin-charts.js", "text/javascript"),
    ("/admin/manager", "manager/manager.html", "text/html"),
    ("/admin/manager.css", "manager/manager.css", "text/css"),
    ("/admin/manager.js", "manager/manager.js", "text/javascript"),
    ("/admin/manager/parts.css", "manager/parts.css", "text/css"),
    ("/admin/manager/client.js", "manager/client.js", "text/javascript"),
    ("/admin/manager/editor.js", "manager/editor.js", "text/javascript"),
    ("/admin/manager/experiment.js", "manager/experiment.js", "text/javascript"),
    ("/admin/manager/parts.js", "manager/parts.js", "text/javascript"),
    ("/admin/manager/playground.js", "manager/playground.js", "text/javascript"),
    ("/admin/manager/revisions.js", "manager/revisions.js", "text/javascript"),
)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Security-Policy": POLICY}


class Live(Struct, frozen=True):
    """The state of the server at `now`, in seconds since 1970."""

    models: tuple[str, ...]
    instance: str
    running: int
    waiting: int
    kv_used_ratio: float
    """Used share of the fullest model's KV cache."""
    writable: bool
    now: float


class Reader(Struct, frozen=True):
    """Who is signed in."""

    name: str
    role: Role


class Figures(Struct, frozen=True):
    """The JSON that the page draws."""

    live: Live
    summary: Summary
    reader: Reader | None
    """None without an admin login."""


class AdminPage:
    """The page's routes; `scope` gives the token budgets, `sessions` who is signed in."""

    def __init__(
        self,
        ledger: Ledger,
        scope: Scope,
        engines: Engines,
        sessions: Sessions | None = None,
    ) -> None:
        self._ledger = ledger
        self._scope = scope
        self._engines = engines
        self._sessions = sessions

    def routes(self, assets: Path) -> list[Route]:
        """The page with its style and scripts, and /admin/summary."""
        files = [_static(path, (assets / name).read_bytes(), kind) for path, name, kind in FILES]
        return [*files, Route("/admin/summary", self.summary)]

    async def summary(self, request: Request) -> Response:
        """The current figures as JSON; raises LedgerUnavailable."""
        now, ledger = time.time(), self._ledger
        try:
            summary = await run_in_threadpool(summarise, ledger, self._scope.limits(), now, self._scope.key_limits())
        except StorageError as error:
            raise LedgerUnavailable(str(error)) from None
        running, waiting, cache = states(self._engines())
        live = Live(
            tuple(running),
            ledger.instance,
            int(sum(running.values())),
            int(sum(waiting.values())),
            max(cache.values()),
            ledger.writable,
            now,
        )
        headers = {**HEADERS, "Cache-Control": "no-store"}
        person = self._sessions.person(request.scope) if self._sessions else None
        figures = Figures(live, summary, Reader(person.name, person.role) if person else None)
        return Response(msgspec.json.encode(figures), headers=headers, media_type="application/json")


def _static(path: str, body: bytes, media_type: str) -> Route:
    async def serve(_: Request) -> Response:
        return Response(body, headers={**HEADERS, "Cache-Control": "no-cache"}, media_type=media_type)

    return Route(path, serve)
