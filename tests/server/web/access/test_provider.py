"""What a provider's discovery document and answers may say, with a stand-in that says whatever a test wants."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from msgspec.structs import replace

from server.config import AdminLogin
from server.errors import Unauthorized
from server.web.access.provider import DISCOVERY, Provider, ProviderUnavailable
from server.web.access.sessions import Attempt

ATTEMPT = Attempt()


class Said:
    """Answers by path; a path without an answer is a redirect to one that has the document."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.sent = "", b""
        self.url = ""
        self.now = 0.0

    def document(self, **changed: object) -> None:
        """The discovery document, with some fields changed."""
        endpoints = {name: f"{self.url}/{name}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
        self.answers[DISCOVERY] = {"issuer": self.url, **endpoints, **changed}


@pytest.fixture
def said() -> Iterator[Said]:
    made = Said()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.sent = (
                self.headers.get("Authorization", ""),
                self.rfile.read(int(self.headers.get("Content-Length", 0))),
            )
            made.asked.append(self.path)
            found = made.answers.get(self.path)
            status, body = found if isinstance(found, tuple) else (302 if found is None else 200, found)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Location", f"{made.url}{DISCOVERY}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def provider(said: Said) -> Provider:
    login = AdminLogin(issuer=said.url, client_id="c", url="https://admin.example", viewers=("staff",))
    said.document()
    return Provider(login, lambda: said.now)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"issuer": "https://elsewhere.example"}, "calls itself by another issuer"),
        ({"token_endpoint": "http://elsewhere.example/token"}, "gives an address that is not https://"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "gives an address that is not https://"),
        ({"jwks_uri": None}, "did not answer as OpenID Connect says"),
        ({"code_challenge_methods_supported": ["plain"]}, "does not support PKCE with S256"),
    ],
)
def test_an_unsafe_document_is_refused(
    said: Said, provider: Provider, changed: dict[str, object], message: str
) -> None:
    said.document(**changed)
    with pytest.raises(ProviderUnavailable, match=message):
        provider.authorization_url(ATTEMPT)


@pytest.mark.parametrize("answer", [None, (500, {}), b"<html>", b"[" * 10_000, b"long"])
def test_another_answer_than_the_document_is_refused(said: Said, provider: Provider, answer: Any) -> None:
    said.answers[DISCOVERY] = answer
    if answer == b"long":
        said.document()
        said.answers[DISCOVERY] = json.dumps(said.answers[DISCOVERY]).encode() + b" " * (1 << 20)
    if answer is None:
        del said.answers[DISCOVERY]  # a redirect, which is not followed
    with pytest.raises(ProviderUnavailable):
        provider.authorization_url(ATTEMPT)
    assert said.asked == [DISCOVERY]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, {"error": "invalid_grant"}), Unauthorized, "does not accept the code"),
        ((400, {"error": "invalid_request"}), Unauthorized, "does not accept the code"),
        ((401, {"error": "invalid_client"}), ProviderUnavailable, "check `client_id` and `client_secret`"),
        ({"access_token": "x"}, ProviderUnavailable, "gives no ID token"),
        ({"id_token": 5}, ProviderUnavailable, "did not answer as OpenID Connect says"),
        ((503, {}), ProviderUnavailable, "answered 503"),
        ({"id_token": "not.a.token"}, Unauthorized, "ID token is not valid here"),
    ],
)
def test_answers_to_a_code(said: Said, provider: Provider, answer: Any, error: type[Exception], message: str) -> None:
    said.answers["/token_endpoint"] = answer
    with pytest.raises(error, match=message):
        provider.claims({"code": "x", "iss": said.url}, ATTEMPT)


def test_a_failing_provider_is_asked_after_1_2_4_and_at_most_60_seconds(said: Said, provider: Provider) -> None:
    del said.answers[DISCOVERY]
    waits = []
    for _ in range(9):
        with pytest.raises(ProviderUnavailable) as caught:
            provider.authorization_url(ATTEMPT)
        before = len(said.asked)
        with pytest.raises(ProviderUnavailable, match="did not answer lately"):
            provider.authorization_url(ATTEMPT)
        assert len(said.asked) == before
        waits.append(caught.value.retry_after - 1)
        said.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    said.document()
    assert provider.authorization_url(ATTEMPT).startswith(f"{said.url}/authorization_endpoint?response_type=code&")
    said.now += 3600.0
    del said.answers[DISCOVERY]
    with pytest.raises(ProviderUnavailable) as caught:
        provider.authorization_url(ATTEMPT)
    assert caught.value.retry_after == 2


def test_the_document_is_kept_for_an_hour(said: Said, provider: Provider) -> None:
    for now in (0.0, 3599.0, 3600.0):
        said.now = now
        provider.authorization_url(ATTEMPT)
    assert said.asked == [DISCOVERY] * 2


@pytest.mark.parametrize(("given", "shown"), [("/end", True), ("", False), ("javascript:alert(1)", False)])
def test_a_logout_at_the_provider_is_offered_if_it_is_an_address(
    said: Said, provider: Provider, given: str, shown: bool
) -> None:
    assert provider.logout_url() == ""
    said.document(end_session_endpoint=said.url + given if given == "/end" else given)
    provider.authorization_url(ATTEMPT)
    assert bool(provider.logout_url()) == shown


@pytest.mark.parametrize("query", ["", "?tenant=1"])
def test_the_query_of_the_endpoint_stays(said: Said, provider: Provider, query: str) -> None:
    said.document(authorization_endpoint=f"{said.url}/go{query}")
    url = provider.authorization_url(ATTEMPT)
    assert url.startswith(f"{said.url}/go{query or '?response_type=code'}")
    assert url.count("?") == 1
    assert ATTEMPT.verifier not in url


@pytest.mark.parametrize("methods", [["client_secret_basic"], ["client_secret_post"]])
def test_the_secret_is_sent_as_the_provider_wants_it(said: Said, provider: Provider, methods: list[str]) -> None:
    said.document(token_endpoint_auth_methods_supported=methods)
    said.answers["/token_endpoint"] = (400, {"error": "invalid_grant"})
    secretive = Provider(replace(provider._settings, client_secret="s"), lambda: said.now)
    with pytest.raises(Unauthorized, match="does not accept the code"):
        secretive.claims({"code": "x"}, ATTEMPT)
    authorization, form = said.sent
    basic = "client_secret_basic" in methods
    assert (authorization == "Basic " + base64.b64encode(b"c:s").decode()) == basic
    assert (b"client_id=c&client_secret=s" in form) != basic
    assert f"code_verifier={ATTEMPT.verifier}".encode() in form
