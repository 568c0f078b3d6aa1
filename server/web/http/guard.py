"""Access to the admin listener: by an admin key if a file of them is configured, else only from this machine.

Paths in OPEN need no key: the probes, and the admin page without its figures.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden, RequestError, Unauthorized
from server.skills.api_keys import Keys, digest
from server.web.http import problems
from server.web.http.requests import bearer

OPEN = {"/healthz", "/readyz", "/admin", "/admin/admin.css", "/admin/admin.js", "/admin/charts.js"}
METRICS = "/metrics"


class AdminGuard:
    """Middleware around `app`; `keys` is None for a loopback listener without keys."""

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; a refused one never reaches the app."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            headers = Headers(scope=scope)
            refusal = _foreign(headers) if self._keys is None else _refusal(self._keys, headers, scope["path"])
            if refusal is not None:
                await problems.response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(keys: Keys, headers: Headers, path: str) -> RequestError | None:
    """Why the request's key does not open `path`, or None if it does."""
    shown = bearer(headers)
    if shown is None:
        return Unauthorized("Send an admin key: `Authorization: Bearer ...`.", code="missing_api_key")
    key = keys.find(digest(shown))
    if key is None:
        return Unauthorized("The admin key is unknown or revoked.", code="invalid_api_key")
    if key.admin == "all" or (key.admin == "metrics" and path == METRICS):
        return None
    return Forbidden(
        "This key does not open this path; a key of `--admin all` does.",
        code="key_not_allowed",
    )


def _foreign(headers: Headers) -> RequestError | None:
    """Refuse requests of web pages in a local browser, by Host (DNS rebinding) and Origin (CSRF); None allows."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _is_address(host) and origin in (None, f"http://{host}"):
        return None
    return Forbidden(
        "This listener has no keys and serves only this machine: use its IP address as the host, or set `admin_keys`.",
        code="host_not_allowed",
    )


def _is_address(host: str) -> bool:
    """Whether a Host header is an IP address or localhost; anyone can point a domain name here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
