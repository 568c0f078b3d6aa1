"""A client of one server: asks a skill and yields the reply's text as it arrives, with its numbers."""

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from server.errors import SecateurError

TIMEOUT = 300
KEY = "SECATEUR_KEY"
"""The environment variable with the API key."""


class Reply(Struct):
    """The numbers of a reply, filled in while it streams; times are in seconds from sending the request."""

    first: float = 0.0
    last: float = 0.0
    pieces: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""

    def __str__(self) -> str:
        """One line for a terminal."""
        rate = (self.completion_tokens - 1) / (self.last - self.first) if self.last > self.first else 0.0
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        speed = f", {rate:.0f} tokens/s" if rate else ""
        ended = "" if self.finish_reason in ("", "stop") else f", ended by {self.finish_reason}"
        return (
            f"{self.prompt_tokens} prompt tokens{cached}, {self.completion_tokens} of reply, "
            f"first after {self.first * 1000:.0f} ms{speed}{ended}"
        )


class Service(Struct, frozen=True):
    """A server at `url`, with an API key."""

    url: str
    key: str

    def skills(self) -> list[str]:
        """The names of the skills that the key opens; raises SecateurError."""
        with self._send("GET", "/v1/models") as response:
            return [model["id"] for model in json.load(response)["data"]]

    def reply(
        self, skill: str, messages: Sequence[dict[str, str]], reply: Reply, *, max_tokens: int | None = None
    ) -> Iterator[str]:
        """Yield the text of the answer to `messages`; `reply` is filled in meanwhile. Raises SecateurError."""
        body: dict[str, Any] = {
            "model": skill,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        sent = monotonic()
        with self._send("POST", "/v1/chat/completions", json.dumps(body)) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    text = _noted(json.loads(line[6:]), reply)
                    if text:
                        reply.last = monotonic() - sent
                        reply.first = reply.first or reply.last
                        reply.pieces += 1
                        yield text

    @contextmanager
    def _send(self, method: str, path: str, body: str | None = None) -> Iterator[http.client.HTTPResponse]:
        """The response to a request; raises SecateurError for any status but 200, and if nobody answers."""
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.netloc, timeout=TIMEOUT)
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, place.path.removesuffix("/v1").rstrip("/") + path, body, headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise SecateurError(f"{self.url} answered {response.status}: {message(response.read(4000))}")
                yield response
        except (OSError, http.client.HTTPException) as error:
            raise SecateurError(f"{self.url} does not answer: {error}") from None
        finally:
            connection.close()


def _noted(event: dict[str, Any], reply: Reply) -> str:
    """The text in an event of the stream, whose numbers go into `reply`; raises SecateurError for an error event."""
    if "error" in event:
        raise SecateurError(str(event["error"].get("message", event["error"])))
    if usage := event.get("usage"):
        reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        reply.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    text = ""
    for choice in event.get("choices", ()):
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        text += choice["delta"].get("content") or ""
    return text


def message(body: bytes) -> str:
    """The message of an error's body, or its first characters."""
    try:
        error = json.loads(body)["error"]
        return f"{error['message']} (`secateur explain {error['code']}`)" if error.get("code") else error["message"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
