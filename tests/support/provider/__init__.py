"""A certified OpenID provider in a process of its own, and what a browser does to sign in there."""

import http.cookiejar
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import pytest

FOLDER = Path(__file__).parent
CLIENT_SECRET = "a secret: with + and %"


class Provider:
    """The running provider; its accounts are any name: ada is an operator, ben a viewer, eve has no role."""

    def __init__(self, redirect_uri: str) -> None:
        command = ["node", "provider.js", redirect_uri]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=FOLDER, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout
        self.issuer = self.process.stdout.readline().strip()
        assert self.issuer, "the provider did not start"

    def rotate(self) -> None:
        """Sign with a new key from now on; the old one is gone."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("rotate\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "rotate\n"

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def provider(redirect_uri: str) -> Iterator[Provider]:
    """Run the provider; skips the test where Node or its packages are missing."""
    if shutil.which("node") is None or not (FOLDER / "node_modules").exists():
        pytest.skip("run tests/install: the OpenID provider needs Node and its packages")
    made = Provider(redirect_uri)
    try:
        yield made
    finally:
        made.stop()


class Answer:
    """What a server answered to a browser."""

    def __init__(self, status: int, headers: Message, text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text

    @property
    def location(self) -> str:
        return str(self.headers.get("Location", ""))


class Browser:
    """Keeps cookies and follows redirects one at a time."""

    def __init__(self) -> None:
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies), _Unfollowed())

    def ask(self, url: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
        """GET, or POST with a form."""
        body = None if form is None else urlencode(form).encode()
        try:
            with self._opener.open(urllib.request.Request(url, body, headers), timeout=30) as response:
                return Answer(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read().decode())

    def callback(self, admin: str, account: str) -> str:
        """Sign in at the provider as `account`; returns the address of the callback, unvisited."""
        url, answer = f"{admin}/admin/login", self.ask(f"{admin}/admin/login")
        for _ in range(20):
            if answer.location:
                url = urljoin(url, answer.location)
                if url.startswith(admin):
                    return url
                answer = self.ask(url)
            else:
                action = re.search(r'<form[^>]* action="([^"]+)"', answer.text)
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert action, answer.text
                assert prompt, answer.text
                form = {"prompt": prompt[1], "login": account, "password": "any"}
                url = urljoin(url, action[1])
                answer = self.ask(url, form)
        raise AssertionError("the provider never came back")

    def sign_in(self, admin: str, account: str) -> Answer:
        """The answer of the callback after a login as `account`."""
        return self.ask(self.callback(admin, account))


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
