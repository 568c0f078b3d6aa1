"""Sealed cookies: their attributes, and which are refused."""

from http.cookies import SimpleCookie

import pytest
from msgspec import json
from starlette.responses import Response
from starlette.types import Scope

from server.config import AdminLogin
from server.web.access import sessions
from server.web.access.sessions import Person, Sessions

LOGIN = AdminLogin(issuer="https://login.example", client_id="c", url="https://admin.example", viewers=("staff",))
ADA = Person("ada", "Ada", "operator")


def cookies(response: Response) -> list[str]:
    return [value.decode() for name, value in response.raw_headers if name == b"set-cookie"]


def request(*shown: str) -> Scope:
    """A request with the cookies that were set."""
    pairs = [f"{name}={morsel.value}" for one in shown for name, morsel in SimpleCookie(one).items()]
    return {"type": "http", "headers": [(b"cookie", "; ".join(pairs).encode())]}


def test_behind_https_the_cookies_belong_to_this_host_and_no_script() -> None:
    made, response = Sessions(LOGIN), Response()
    made.begin(response)
    made.admit(response, ADA)
    assert [one.partition("=")[0] for one in cookies(response)] == [
        "__Host-secateur-login",
        "__Host-secateur-admin",
        "__Host-secateur-login",
    ]
    for one in cookies(response):
        assert {"HttpOnly", "Secure", "Path=/", "SameSite=lax"} <= set(one.split("; "))
        assert "Domain" not in one


def test_only_a_cookie_of_its_kind_and_process_counts() -> None:
    made, other, begun, admitted = Sessions(LOGIN), Sessions(LOGIN), Response(), Response()
    attempt = made.begin(begun)
    made.admit(admitted, ADA)
    session = cookies(admitted)[0]
    assert made.person(request(session)) == ADA
    assert other.person(request(session)) is None  # another process, or this one after a restart
    assert made.person(request(session.replace("=", "=A", 1))) is None
    as_session = cookies(begun)[0].replace("secateur-login", "secateur-admin", 1)
    assert made.person(request(as_session)) is None
    assert made.person({"type": "http", "headers": []}) is None
    assert made.take_attempt(request(cookies(begun)[0]), attempt.state) == attempt
    assert made.take_attempt(request(cookies(begun)[0]), attempt.state) is None


def test_the_cookie_shows_nothing_of_the_person() -> None:
    response = Response()
    Sessions(LOGIN).admit(response, ADA)
    shown = cookies(response)[0]
    assert not [word for word in ("ada", "Ada", "operator") if word in shown]
    assert json.encode(ADA).decode() not in shown


def test_memory_of_used_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_SPENT", 3)
    now = [0.0]
    spent = sessions._Spent(10, lambda: now[0])
    assert [spent.add(name) for name in "abca"] == [True, True, True, False]
    assert spent.add("d")
    assert len(spent._until) == 3
    now[0] = 11.0
    assert spent.add("b")
    assert list(spent._until) == ["b"]
