"""The demo's host page: the line it shows is the line it uses, its policy is strict, and nothing is left unescaped."""

import re
from html import unescape

from starlette.testclient import TestClient

from server.page import page, policy

URL = "https://chat.example.org/widget.js"


def client(skill: str = "help", url: str = URL) -> TestClient:
    return TestClient(page(skill, url, lambda: {"input": 5, "output": 2, "requests": 1, "secret": 9}))


def test_the_line_that_is_shown_is_the_line_that_is_used() -> None:
    html = client().get("/").text
    shown = unescape(re.findall(r'<code id="embed">(.*?)</code>', html)[0])
    assert shown == f'<script async src="{URL}" data-skill="help"></script>'
    assert html.count(shown) == 1
    assert html.index(shown) < html.index("</head>")


def test_values_cannot_leave_their_place() -> None:
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


def test_nothing_inline_stands_in_the_page() -> None:
    html = client().get("/").text
    assert not re.findall(r"<script(?![^>]* src=)|<style| on\w+=| style=", html)


def test_the_totals_are_the_four_that_the_page_shows() -> None:
    response = client().get("/tokens")
    assert response.json() == {"input": 5, "cached": 0, "output": 2, "requests": 1}
    assert response.headers["cache-control"] == "no-store"
    html = client().get("/").text
    assert set(re.findall(r'data-total="(\w+)"', html)) == response.json().keys()


def test_its_files_are_served_with_their_types() -> None:
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        response = client().get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["x-content-type-options"] == "nosniff"
