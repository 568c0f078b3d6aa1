"""Access to the admin listener by an admin key or a session of its login; with neither configured, from this machine.

Paths in OPEN need neither: the probes, and the admin page without its figures, which needs a session if there is a
login. Requests to paths in AUDITED leave an entry in the audit log, and are answered only once it is durable.
"""

import asyncio
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Forbidden, RequestError, Unauthorized
from server.metering.audit.chain import Event
from server.metering.ledger.records import LedgerUnavailable
from server.skills.api_keys import Keys, digest
from server.web.access.provider import CALLBACK
from server.web.access.sessions import ROLES, Role, Sessions
from server.web.http import problems
from server.web.http.requests import bearer
from server.web.http.throttle import Refused

PAGE = "/admin"
LOGIN = "/admin/login"
LOGOUT = "/admin/logout"
SIGNED_OUT = "/admin/signed-out"
MANAGER = "/admin/manager"
FILES = {"/admin/admin.css", "/admin/admin.js", "/admin/charts.js", "/admin/manager.css", "/admin/manager.js"}
MANAGER_PARTS = ("client.js", "editor.js", "experiment.js", "parts.js", "playground.js", "revisions.js", "parts.css")
FILES |= {f"/admin/manager/{part}" for part in MANAGER_PARTS}
OPEN = {"/healthz", "/readyz", PAGE, MANAGER, *FILES}
OPEN_WITH_LOGIN = OPEN - {PAGE, MANAGER} | {LOGIN, CALLBACK, SIGNED_OUT}
METRICS = "/metrics"
AUDITED = {
    "/admin/reload": "reload",
    "/admin/usage": "usage.export",
    "/admin/registry": "registry.view",
    "/admin/summary": "summary.view",
}
"""Action by path."""
POLLED_SECONDS = 3600.0  # the page asks for its summary every two seconds: one entry an hour for each reader
MOST_READERS = 1000
THIS_MACHINE = "this machine"
READING = {"GET", "HEAD"}
CHANGES: tuple[tuple[str, Role], ...] = (
    (LOGOUT, "viewer"),
    (r"/admin/skills/[^/]+/(check|diff|revisions|try|knowledge/(upload|delete|build))", "editor"),
    (r"/admin/skills/[^/]+/(publish|rollback|withdraw|experiment/(start|stop|decide))", "publisher"),
)
"""The least role of who may send what is not a GET, by pattern of the path; of others, operators."""
READS: tuple[tuple[str, Role], ...] = ((r"/admin/skills/[^/]+/conversations/?", "operator"),)
"""The least role of who may read what visitors wrote; viewers may read all else."""


class Access(NamedTuple):
    """The verdict on a request: who sent it, and the error that refuses it, or None."""

    who: str
    refusal: RequestError | None
    role: Role = "operator"
    """The person's role; keys of `--admin all` and this machine have every right."""


class AdminGuard:
    """Middleware around `app`; without `keys` and `sessions` it admits this machine, which is loopback's default."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        sessions: Sessions | None,
        refused: Refused,
        record: Callable[[Event], "Future[None]"],
    ) -> None:
        self._app = app
        self._keys = keys
        self._sessions = sessions
        self._open = OPEN if sessions is None else OPEN_WITH_LOGIN
        self._refused = refused
        self._record = record
        self._readers: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; a refused one never reaches the app."""
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        path, access = scope["path"], self._access(scope)
        if access.refusal is None:
            scope.setdefault("state", {}).update(who=access.who, role=access.role)
            await self._admitted(access.who, scope, receive, send)
            return
        if path in (PAGE, MANAGER) and access.refusal.code == "login_required":
            await RedirectResponse(LOGIN, 303)(scope, receive, send)
            return
        # Any other path may hold a client's own text.
        place = f"{_method(scope)} {path if path in {METRICS, *AUDITED} else 'another path'}"
        answer = self._refused.judge(access.refusal, _address(scope), access.who, place)
        await problems.response(answer)(scope, receive, send)

    def _access(self, scope: Scope) -> Access:
        headers = Headers(scope=scope)
        if self._sessions is not None and bearer(headers) is None:
            return _by_session(self._sessions, scope, headers)
        if self._keys is not None:
            return _by_key(self._keys, headers, scope["path"])
        if self._sessions is not None:
            refusal = Unauthorized("There are no admin keys: sign in at /admin/login.", code="invalid_api_key")
            return Access("", refusal)
        return _local(headers)

    async def _admitted(self, who: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the response to an audited one waits for its entry, and is 503 without it."""
        path, failure = scope["path"], None

        async def send_recorded(message: Message) -> None:
            nonlocal failure
            if message["type"] == "http.response.start":
                failure = await self._recorded(who, scope, message["status"])
            if failure is None:
                await send(message)

        await self._app(scope, receive, send_recorded if path in AUDITED else send)
        if failure is not None:
            await problems.response(failure)(scope, receive, send)

    async def _recorded(self, who: str, scope: Scope, status: int) -> LedgerUnavailable | None:
        """Write the audit entry of a request and wait until it is durable; returns the error if that failed."""
        path, address = scope["path"], _address(scope)
        if AUDITED[path] == "summary.view" and self._read_lately(who, address):
            return None
        # A refused query may hold anything; one that was answered holds known names and values.
        query = scope["query_string"].decode("latin-1") if status < 400 and AUDITED[path] == "usage.export" else ""
        place = f"{_method(scope)} {path}{'?' * bool(query)}{query}"
        try:
            await asyncio.wrap_future(self._record(Event(who, AUDITED[path], place, address, str(status))))
        except LedgerUnavailable as error:
            return error
        return None

    def _read_lately(self, who: str, address: str) -> bool:
        """Whether this reader of the summary has a recent audit entry; if not, remember that it gets one now."""
        now, reader = time.monotonic(), (who, address)
        if now - self._readers.get(reader, -POLLED_SECONDS) < POLLED_SECONDS:
            return True
        self._readers[reader] = now
        if len(self._readers) > MOST_READERS:
            self._readers.popitem(last=False)
        return False


def who(request: Request) -> str:
    """Who sent an admitted request, as the audit log names them."""
    return str(request.scope["state"]["who"])


def role(request: Request) -> Role:
    """The role of who sent an admitted request."""
    found: Role = request.scope["state"]["role"]
    return found


def _by_key(keys: Keys, headers: Headers, path: str) -> Access:
    """Check that the request's admin key is valid and opens `path`."""
    shown = bearer(headers)
    if shown is None:
        return Access("", Unauthorized("Send an admin key: `Authorization: Bearer ...`.", code="missing_api_key"))
    key = keys.look_up(digest(shown))
    if key is None or key.revoked:
        refused = Unauthorized("The admin key is unknown or revoked.", code="invalid_api_key")
        return Access(key.id if key else "", refused)
    if key.expired:
        return Access(key.id, Unauthorized(f"The admin key expired at {key.expires}.", code="api_key_expired"))
    if key.admin == "all" or (key.admin == "metrics" and path == METRICS):
        return Access(key.id, None)
    refusal = Forbidden("This key does not open this path; a key of `--admin all` does.", code="key_not_allowed")
    return Access(key.id, refusal)


def least_role(path: str, *, reading: bool = False) -> Role:
    """The least role of somebody who may read, or else change, something at `path`."""
    other: Role = "viewer" if reading else "operator"
    return next((role for pattern, role in (READS if reading else CHANGES) if re.fullmatch(pattern, path)), other)


def _by_session(sessions: Sessions, scope: Scope, headers: Headers) -> Access:
    """Check that a person is signed in, may do this, and does it on this listener's own page."""
    person = sessions.person(scope)
    if person is None:
        refusal = Unauthorized(
            "Sign in at /admin/login, or send an admin key: `Authorization: Bearer ...`.", code="login_required"
        )
        return Access("", refusal)
    reading = scope["method"] in READING
    if not reading and headers.get("origin") != sessions.origin:
        return Access(person.who, Forbidden("This was not sent by the admin page.", code="origin_not_allowed"))
    least = least_role(scope["path"], reading=reading)
    if ROLES.index(person.role) < ROLES.index(least):
        refused = Forbidden(f"This needs the role {least}; yours is {person.role}.", code="role_not_allowed")
        return Access(person.who, refused, person.role)
    return Access(person.who, None, person.role)


def _local(headers: Headers) -> Access:
    """Refuse requests of web pages in a local browser, by Host (DNS rebinding) and Origin (CSRF)."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _is_address(host) and origin in (None, f"http://{host}"):
        return Access(THIS_MACHINE, None)
    refusal = Forbidden(
        "This listener has no keys and serves only this machine: use its IP address as the host, or set `admin_keys`.",
        code="host_not_allowed",
    )
    return Access(THIS_MACHINE, refusal)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in {"GET", "HEAD", "POST"} else "OTHER"


def _address(scope: Scope) -> str:
    """The client's IP address, or what a trusted proxy says of it."""
    return str(scope["client"][0]) if scope.get("client") else ""


def _is_address(host: str) -> bool:
    """Whether a Host header is an IP address or localhost; anyone can point a domain name here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
