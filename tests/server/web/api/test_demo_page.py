"""The demo page: it shows the line that it uses, its policy is strict, and every value is escaped."""

import asyncio
import re
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.storage.database import StorageError
from server.web.api.demo_page import page, policy
from server.web.app import host_page
from tests.support.harness import parts, says

URL = "https://chat.example.org/widget.js"


def client(skill: str = "help", url: str = URL) -> TestClient:
    return TestClient(page(skill, url, lambda: {"input": 5, "output": 2, "requests": 1, "secret": 9}))


def test_the_shown_line_is_the_used_line() -> None:
    html = client().get("/").text
    shown = unescape(re.findall(r'<code id="embed">(.*?)</code>', html)[0])
    assert shown == f'<script async src="{URL}" data-skill="help"></script>'
    assert html.count(shown) == 1
    assert html.index(shown) < html.index("</head>")


def test_values_are_escaped() -> None:
    html = client('"><script>alert(1)</script>&', 'https://x.example/"><img src=x>').get("/").text
    assert "<script>alert(1)" not in html
    assert "<img" not in html
    assert "$" not in html


def test_the_policy_allows_the_server_and_nothing_else() -> None:
    response = client().get("/")
    assert response.headers["content-security-policy"] == policy(URL)
    directives = dict(part.split(" ", 1) for part in policy(URL).split("; "))
    assert directives.pop("script-src") == directives.pop("connect-src") == "'self' https://chat.example.org"
    assert directives.pop("style-src") == "'self'"
    assert directives.pop("img-src") == "data:"
    assert directives.pop("require-trusted-types-for") == "'script'"
    assert set(directives.values()) == {"'none'"}
    assert "unsafe" not in policy(URL)


def test_the_page_has_no_inline_code() -> None:
    html = client().get("/").text
    assert not re.findall(r"<script(?![^>]* src=)|<style| on\w+=| style=", html)


def test_the_totals_are_the_four_that_the_page_shows() -> None:
    response = client().get("/tokens")
    assert response.json() == {"input": 5, "cached": 0, "output": 2, "requests": 1}
    assert response.headers["cache-control"] == "no-store"
    html = client().get("/").text
    assert set(re.findall(r'data-total="(\w+)"', html)) == response.json().keys()


def test_an_unreadable_ledger_is_a_503() -> None:
    def fails() -> dict[str, int]:
        raise StorageError("disk I/O error")

    response = TestClient(page("help", URL, fails)).get("/tokens")
    assert (response.status_code, response.headers["cache-control"]) == (503, "no-store")


def test_the_loop_is_free_while_the_ledger_is_read() -> None:
    def totals() -> dict[str, int]:
        with pytest.raises(RuntimeError):  # a thread without a loop
            asyncio.get_running_loop()
        return {}

    assert TestClient(page("help", URL, totals)).get("/tokens").status_code == 200


@pytest.mark.parametrize(
    ("host", "named"), [("::1", "[::1]"), ("::", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("chat.local", "chat.local")]
)
def test_the_widget_has_an_address_that_a_browser_can_open(tmp_path: Path, host: str, named: str) -> None:
    made = parts(tmp_path, says(tmp_path, "x"), host=host, port=8000)
    app = host_page(made)
    made.ledger.close()
    assert app is not None
    assert f'src="http://{named}:8000/widget.js"' in TestClient(app).get("/").text


def test_its_files_are_served_with_their_types() -> None:
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        response = client().get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["x-content-type-options"] == "nosniff"
