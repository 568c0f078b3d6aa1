"""The admin login against a certified OpenID provider: who gets in, who does not, and what the audit log says."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.browser.support.drivers import free_port
from tests.server.web.access.test_guard import key_of, status
from tests.server.web.test_audit import found
from tests.server.web.test_listeners import call
from tests.support.harness import Serve, Served, until
from tests.support.provider import CLIENT_SECRET, Browser, Provider, provider

pytestmark = pytest.mark.slow
FILES = {"/healthz", "/readyz", "/admin/admin.css", "/admin/admin.js", "/admin/charts.js"}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def running(port: int) -> Iterator[Provider]:
    with provider(f"http://127.0.0.1:{port}/admin/login/callback") as made:
        yield made


class House(NamedTuple):
    server: Served
    admin: str

    def refused(self, *expected: tuple[str, str]) -> None:
        """Check who was refused, and why; these entries are written after the answer."""
        until(lambda: len(found(self.server, "admin.refused")) >= len(expected))
        assert [(entry.who, entry.result) for entry in found(self.server, "admin.refused")] == list(expected)


@pytest.fixture
def house(serve: Serve, running: Provider, port: int) -> Callable[..., House]:
    """Starts a server whose admin listener asks people to sign in."""

    def start(issuer: str = "", login: dict[str, object] | None = None, **settings: object) -> House:
        table = {
            "issuer": issuer or running.issuer,
            "client_id": "secateur",
            "client_secret": CLIENT_SECRET,
            "url": f"http://127.0.0.1:{port}",
            "viewers": ["staff"],
            "operators": ["sre"],
            **(login or {}),
        }
        server = serve("ok", admin_port=port, admin_login=table, **settings)
        assert server.admin == table["url"]
        return House(server, server.admin)

    return start


def test_an_operator_signs_in_reads_reloads_and_signs_out(house: Callable[..., House]) -> None:
    at, browser = house(), Browser()
    assert browser.ask(f"{at.admin}/admin").location == "/admin/login"
    answer = browser.sign_in(at.admin, "ada")
    assert (answer.status, answer.location) == (303, "/admin")
    assert browser.ask(f"{at.admin}/admin").status == 200
    summary = browser.ask(f"{at.admin}/admin/summary")
    assert '"reader":{"name":"ada@shop.example","role":"operator"}' in summary.text
    assert [browser.ask(at.admin + path).status for path in ("/metrics", "/admin/usage?by=skill")] == [200, 200]
    # this test's skills are no files, so a reload that is allowed is refused
    assert "skills_invalid" in browser.ask(f"{at.admin}/admin/reload", {}, Origin=at.admin).text
    copied = {cookie.name: cookie.value or "" for cookie in browser.cookies}
    assert browser.ask(f"{at.admin}/admin/logout", {}, Origin=at.admin).status == 200
    assert browser.ask(f"{at.admin}/admin/summary").status == 401
    replayed = "; ".join(f"{name}={value}" for name, value in copied.items())
    assert Browser().ask(f"{at.admin}/admin/summary", Cookie=replayed).status == 401  # a copy ends as well
    assert "/session/end" in browser.ask(f"{at.admin}/admin/signed-out").text
    said = [(entry.who, entry.action, entry.result) for entry in found(at.server) if entry.who[:5] == "oidc:"]
    assert said == [
        ("oidc:ada", "login", "operator"),
        ("oidc:ada", "summary.view", "200"),
        ("oidc:ada", "usage.export", "200"),
        ("oidc:ada", "reload", "400"),
        ("oidc:ada", "logout", ""),
    ]
    at.refused(("", "login_required"), ("", "login_required"))


def test_a_viewer_reads_and_changes_nothing(house: Callable[..., House]) -> None:
    at, browser = house(), Browser()
    assert browser.sign_in(at.admin, "ben").status == 303
    assert browser.ask(f"{at.admin}/admin/usage?by=skill").status == 200
    answer = browser.ask(f"{at.admin}/admin/reload", {}, Origin=at.admin)
    assert (answer.status, "role_not_allowed" in answer.text) == (403, True)
    assert browser.ask(f"{at.admin}/admin/logout", {}, Origin=at.admin).status == 200
    at.refused(("oidc:ben", "role_not_allowed"))


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1:1"])
def test_a_post_of_another_page_is_refused(house: Callable[..., House], origin: str | None) -> None:
    at, browser = house(), Browser()
    browser.sign_in(at.admin, "ada")
    headers = {} if origin is None else {"Origin": origin}
    for path in ("/admin/reload", "/admin/logout"):
        assert "origin_not_allowed" in browser.ask(at.admin + path, {}, **headers).text
    at.refused(*[("oidc:ada", "origin_not_allowed")] * 2)


@pytest.mark.parametrize(
    "account",
    [
        "wrong-audience",
        "shared-audience",
        "wrong-issuer",
        "wrong-nonce",
        "no-nonce",
        "expired",
        "eternal",
        "other-key",
        "unsigned",
    ],
)
def test_a_faulty_token_opens_nothing(house: Callable[..., House], account: str) -> None:
    at, browser = house(), Browser()
    answer = browser.sign_in(at.admin, account)
    assert (answer.status, "ID token is not valid here" in answer.text) == (401, True)
    assert browser.ask(f"{at.admin}/admin/summary").status == 401
    at.refused(("", "login_token"), ("", "login_required"))
    assert 'secateur_auth_failures_total{listener="admin"} 1.0' in metrics(at)


def metrics(at: House) -> str:
    """The metrics as an operator reads them."""
    browser = Browser()
    browser.sign_in(at.admin, "ada")
    return browser.ask(f"{at.admin}/metrics").text


def test_an_account_without_a_role_is_refused_by_name(house: Callable[..., House]) -> None:
    at, browser = house(), Browser()
    answer = browser.sign_in(at.admin, "eve")
    assert (answer.status, "has no role" in answer.text) == (403, True)
    assert "set-cookie" not in answer.headers
    at.refused(("oidc:eve", "login_role"))


@pytest.mark.parametrize(("claim", "expected"), [("realm.roles", 303), ("realm", 403), ("realm.roles.x", 403)])
def test_the_claim_may_be_inside_objects(house: Callable[..., House], claim: str, expected: int) -> None:
    assert Browser().sign_in(house(login={"claim": claim}).admin, "ben").status == expected


@pytest.mark.parametrize(("account", "expected"), [("ada", 303), ("unverified", 403)])
def test_an_address_counts_only_if_the_provider_verified_it(
    house: Callable[..., House], account: str, expected: int
) -> None:
    at = house(login={"claim": "email", "operators": ["ada@shop.example"], "viewers": []})
    assert Browser().sign_in(at.admin, account).status == expected


def test_a_forged_state_a_foreign_answer_and_a_replayed_one_are_refused(house: Callable[..., House]) -> None:
    at, browser = house(), Browser()
    url = browser.callback(at.admin, "ada")
    state = url.partition("state=")[2].partition("&")[0]
    assert browser.ask(url.replace(state, "forged")).status == 401
    assert Browser().ask(url).status == 401  # another browser: the link was sent to somebody
    assert Browser().ask(f"{at.admin}/admin/login/callback").status == 401
    assert browser.ask(url.replace("iss=http", "iss=https")).status == 401
    again = browser.callback(at.admin, "ada")
    assert browser.ask(again).status == 303
    assert browser.ask(again).status == 401
    at.refused(*[("", "login_state")] * 5)


def test_a_code_serves_once_and_only_with_its_verifier(house: Callable[..., House]) -> None:
    at, thief, browser = house(), Browser(), Browser()
    stolen = code_of(browser.callback(at.admin, "ada"))
    own = thief.callback(at.admin, "eve")
    answer = thief.ask(own.replace(code_of(own), stolen))
    assert (answer.status, "does not accept the code" in answer.text) == (401, True)
    at.refused(("", "login_code"))


def code_of(url: str) -> str:
    return url.partition("code=")[2].partition("&")[0]


def test_a_provider_that_refuses_the_person_is_believed(house: Callable[..., House]) -> None:
    at, browser = house(), Browser()
    url = browser.callback(at.admin, "ada")
    answer = browser.ask(url.replace("code=", "error=access_denied&was="))
    assert (answer.status, "did not let you in" in answer.text) == (401, True)
    at.refused(("", "login_denied"))


def test_new_keys_of_the_provider_are_fetched(
    house: Callable[..., House], running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.web.access.provider.REFETCH_SECONDS", 0.0)
    at = house()
    assert Browser().sign_in(at.admin, "ada").status == 303
    running.rotate()
    assert Browser().sign_in(at.admin, "ada").status == 303


def test_a_provider_that_is_down_is_asked_less_and_less(
    house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        issuer = f"http://127.0.0.1:{closed.getsockname()[1]}"
    at = house(issuer)
    answers = [Browser().ask(f"{at.admin}/admin/login") for _ in range(3)]
    assert [answer.status for answer in answers] == [503] * 3
    assert "does not answer (ConnectionRefusedError)" in answers[0].text
    assert "did not answer lately" in answers[1].text
    assert answers[0].headers["Retry-After"] == "2"
    assert sum("login provider" in record.getMessage() for record in caplog.records) == 1
    assert Browser().ask(f"{at.admin}/admin/usage").status == 401


def test_many_forged_answers_are_throttled_and_the_person_is_not(house: Callable[..., House]) -> None:
    at = house()
    answers = [Browser().ask(f"{at.admin}/admin/login/callback?state=x&code=y") for _ in range(12)]
    assert [answer.status for answer in answers] == [401] * 10 + [429] * 2
    assert Browser().sign_in(at.admin, "ben").status == 303


def test_a_login_is_demanded_even_of_this_machine_and_keys_go_on_working(
    house: Callable[..., House], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.json"
    scrape = key_of(file, capsys, "--admin", "metrics")
    everything = key_of(file, capsys, "--admin", "all")
    at = house(admin_keys=str(file))
    assert status(at.server, "/metrics", scrape) == 200
    assert status(at.server, "/admin/usage", scrape) == 403
    assert status(at.server, "/admin/usage", everything) == 200
    for path in ("/metrics", "/admin/usage", "/admin/summary", "/admin/registry", "/admin/unknown"):
        assert status(at.server, path) == 401
        assert status(at.server, path, "sk-wrong") == 401
    assert {status(at.server, path) for path in FILES} == {200}


def test_without_a_key_file_no_key_is_right(house: Callable[..., House]) -> None:
    at = house()
    assert status(at.server, "/metrics", "sk-any") == 401
    assert call(at.admin, "/admin/reload", b"", "POST", Origin=at.admin).status == 401


def test_the_session_is_closed_to_scripts_and_other_sites_and_ends(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, browser = house(login={"session_seconds": 60}), Browser()
    answer = browser.sign_in(at.admin, "ada")
    cookies = answer.headers.get_all("Set-Cookie") or []
    assert [cookie.partition("=")[0] for cookie in cookies] == ["secateur-admin", "secateur-login"]
    assert all("; HttpOnly; Max-Age=" in cookie and "; SameSite=lax" in cookie for cookie in cookies)
    assert "Max-Age=60" in cookies[0]
    assert browser.ask(f"{at.admin}/metrics").status == 200
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert browser.ask(f"{at.admin}/metrics").status == 401
