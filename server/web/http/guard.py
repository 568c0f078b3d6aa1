"""Who may use the admin listener: with a file of admin keys whoever shows one of them, and without it this machine.

Everything is refused that is not in OPEN, which holds no figure: the probes, and the page without its data.
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


class Guard:
    """Wraps `app`; `keys` None is a listener on loopback without keys."""

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; refused before the application sees anything of it."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            headers = Headers(scope=scope)
            refusal = _foreign(headers) if self._keys is None else _refusal(self._keys, headers, scope["path"])
            if refusal is not None:
                await problems.response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(keys: Keys, headers: Headers, path: str) -> RequestError | None:
    """Why the key that is shown does not open the path, or None if it does."""
    shown = bearer(headers)
    if shown is None:
        return Unauthorized("Send an admin key: `Authorization: Bearer ...`.", code="missing_api_key")
    key = keys.find(digest(shown))
    if key is None:
        return Unauthorized("The admin key is not known.", code="invalid_api_key")
    if key.admin == "all" or (key.admin == "metrics" and path == METRICS):
        return None
    return Forbidden("This key may not do that here.", code="key_not_allowed")


def _foreign(headers: Headers) -> RequestError | None:
    """A page of another site, that the browser of somebody on this machine has open: by its name, or by its origin."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _is_address(host) and origin in (None, f"http://{host}"):
        return None
    return Forbidden(
        "This listener has no keys and is for this machine: ask by its address, not by a name, or name `admin_keys`.",
        code="host_not_allowed",
    )


def _is_address(host: str) -> bool:
    """Whether a Host header names no domain, which anybody could point here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
