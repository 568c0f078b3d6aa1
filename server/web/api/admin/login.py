"""The admin login: /admin/login sends a browser to the provider, its callback opens a session, /admin/logout ends it.

Each login, refusal and logout leaves an entry in the audit log. Wrong answers to the callback are throttled like wrong
keys.
"""

import asyncio
import html
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from string import Template
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from server.config import AdminLogin
from server.errors import Forbidden, InvalidRequest, RequestError, SecateurError, Unauthorized
from server.metering.audit.chain import Event
from server.web.access.guard import LOGIN, LOGOUT, PAGE, SIGNED_OUT
from server.web.access.provider import CALLBACK, Provider
from server.web.access.sessions import ROLES, Person, Role, Sessions, who_is
from server.web.api.admin.page import HEADERS
from server.web.http import problems
from server.web.http.requests import address
from server.web.http.responses import json_response
from server.web.http.throttle import Refused

LONGEST_NAME = 100
ENDED = "You are signed out of this server. The login provider may still know you."
Record = Callable[[Event], "Future[None]"]


class LoginEndpoints:
    """Signs people in by the provider of `settings`; `assets` has the page that shows why one was not."""

    def __init__(
        self, settings: AdminLogin, sessions: Sessions, refused: Refused, record: Record, assets: Path
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._provider = Provider(settings)
        self._refused = refused
        self._record = record
        self._page = Template((assets / "login.html").read_text())
        self._one = CapacityLimiter(1)
        """The provider is asked one question at a time."""

    def routes(self) -> list[Route]:
        """The routes of the login; only the logout requires a session."""
        return [
            Route(LOGIN, self.begin),
            Route(CALLBACK, self.finish),
            Route(LOGOUT, self.end, methods=["POST"]),
            Route(SIGNED_OUT, self.ended),
        ]

    async def begin(self, request: Request) -> Response:
        """Send the browser to the provider, with a cookie that binds the attempt to it."""
        return await self._shown(self._begin(request))

    async def finish(self, request: Request) -> Response:
        """Check the provider's answer and open a session; else say why not."""
        return await self._shown(self._finish(request))

    async def end(self, request: Request) -> Response:
        """End the session of the request and name the page that follows."""
        person = self._sessions.person(request.scope)
        if person is None:
            return problems.response(InvalidRequest("There is no session to end: a key has none.", code="no_session"))
        response = json_response({"location": SIGNED_OUT}, no_store=True)
        self._sessions.end(response, person)  # even if the audit log fails
        await self._recorded(request, person.who, "logout", "")
        return response

    async def ended(self, _: Request) -> Response:
        """The page after a logout, with the provider's own logout if it has one."""
        return self._html("Signed out", ENDED, 200, self._provider.logout_url())

    async def _begin(self, _: Request) -> Response:
        response = RedirectResponse(PAGE, 303)
        attempt = self._sessions.begin(response)
        url = await to_thread.run_sync(self._provider.authorization_url, attempt, limiter=self._one)
        response.headers["Location"] = url
        return response

    async def _finish(self, request: Request) -> Response:
        who = ""
        try:
            claims = await self._claims(request)
            who = who_is(claims["sub"])
            person = Person(claims["sub"], name_of(claims), role_of(self._settings, claims))
        except RequestError as error:
            raise self._refused.judge(error, address(request), who, f"GET {CALLBACK}") from None
        await self._recorded(request, person.who, "login", person.role)
        response = RedirectResponse(PAGE, 303)
        self._sessions.admit(response, person)
        return response

    async def _claims(self, request: Request) -> dict[str, Any]:
        """The claims of who came back from the provider; raises Unauthorized or ProviderUnavailable."""
        answer = dict(request.query_params)
        attempt = self._sessions.take_attempt(request.scope, answer.get("state", ""))
        if attempt is None:
            raise Unauthorized(
                "This browser did not begin this login, began it more than ten minutes ago, or has ended it.",
                code="login_state",
            )
        return await to_thread.run_sync(self._provider.claims, answer, attempt, limiter=self._one)

    async def _recorded(self, request: Request, who: str, action: str, result: str) -> None:
        """Write an audit entry and wait until it is durable; raises LedgerUnavailable."""
        event = Event(who, action, f"{request.method} {request.url.path}", address(request), result)
        await asyncio.wrap_future(self._record(event))

    async def _shown(self, answer: Coroutine[Any, Any, Response]) -> Response:
        """The answer, or its error as a page: browsers come here by themselves."""
        try:
            response = await answer
        except SecateurError as error:
            response = self._html("Not signed in", error.message, error.status)
            if "retry-after" in (headers := problems.response(error).headers):
                response.headers["Retry-After"] = headers["retry-after"]
        response.headers.update({**HEADERS, "Cache-Control": "no-store"})
        return response

    def _html(self, title: str, text: str, status: int, provider: str = "") -> Response:
        link = f'<a href="{html.escape(provider)}">Sign out of the login provider</a>' if provider else ""
        filled = self._page.substitute(title=html.escape(title), text=html.escape(text), link=link)
        return HTMLResponse(filled, status, {**HEADERS, "Cache-Control": "no-store"})


def role_of(settings: AdminLogin, claims: Mapping[str, Any]) -> Role:
    """The role that the groups in a person's claims give; raises Forbidden if they give none.

    An address that the provider has not verified gives none: anybody could have entered it.
    """
    found: Any = claims if settings.claim != "email" or claims.get("email_verified") is True else {}
    for step in settings.claim.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    groups = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    members = zip(ROLES, (settings.viewers, settings.editors, settings.publishers, settings.operators), strict=True)
    if held := [role for role, allowed in members if any(group in allowed for group in groups)]:
        return held[-1]
    raise Forbidden("Your account has no role on this server.", code="login_role")


def name_of(claims: Mapping[str, Any]) -> str:
    """What the page calls the person: the preferred name, else the address, else the subject."""
    names = (claims.get("preferred_username"), claims.get("email"), claims["sub"])
    return next(name for name in names if isinstance(name, str) and name)[:LONGEST_NAME]
