"""A page visitor who speaks the widget's protocol over a real socket."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.harness import ORIGIN, Served


class Answer(NamedTuple):
    status: int
    headers: Any
    json: Any


class Event(NamedTuple):
    id: int
    name: str
    data: Any


class Visitor:
    """Opens a session when made; `ask` reads a whole reply, `stream` returns the open response."""

    @classmethod
    def at(cls, url: str) -> Self:
        """A visitor of the server at `url`."""
        return cls(None, url=url)

    def __init__(
        self, served: Served | None, *, skill: str = "help", origin: str = ORIGIN, url: str = "", **session: Any
    ) -> None:
        self.netloc = urlsplit(served.url if served else url).netloc
        self.origin = origin
        self.token = ""
        self.opened = self.post("session", {"skill": skill, **session})
        if self.opened.status == 200:
            self.token = self.opened.json["token"]

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.netloc, timeout=120)
        sent = {"Origin": self.origin, "Authorization": f"Bearer {self.token}", "Connection": "close"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, f"/v1/widget/{path}", content, {k: v for k, v in sent.items() if v})
        return connection.getresponse()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with closing(self.request(method, path, body, **headers)) as response:
            content = response.read()
            return Answer(response.status, response.headers, json.loads(content) if content else None)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.call("POST", path, body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, **headers)

    def stream(self, text: str, **fields: Any) -> http.client.HTTPResponse:
        return self.request("POST", "messages", {"text": text, **fields})

    def ask(self, text: str, **fields: Any) -> list[Event]:
        with closing(self.stream(text, **fields)) as response:
            assert response.status == 200, response.read()
            return list(events(response))

    def follow(self, reply: str, query: str = "", **headers: str) -> list[Event]:
        with closing(self.request("GET", f"replies/{reply}{query}", **headers)) as response:
            assert response.status == 200, response.read()
            return list(events(response))


def events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Each event as it arrives; skips comments."""
    fields: dict[str, str] = {}
    while line := response.readline():
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def text_of(received: list[Event]) -> str:
    return "".join(event.data["text"] for event in received if event.name == "text")
