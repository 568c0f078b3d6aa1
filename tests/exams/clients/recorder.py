"""A reverse proxy that notes the id and the usage of each response, independent of the server's own counts."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

HOP = ("connection", "transfer-encoding", "keep-alive", "host", "accept-encoding", "content-length")


class Claim(NamedTuple):
    """What a response said of its tokens; None where it said nothing."""

    path: str
    status: int
    request_id: str
    usage: tuple[int, int] | None
    """Prompt and output tokens."""


class Recorder(ThreadingHTTPServer):
    """Forwards to the server at `port` and keeps a claim for each response."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = port
        self.claims: list[Claim] = []


class Handler(BaseHTTPRequestHandler):
    """Forwards one request; response bodies are passed on as they arrive."""

    protocol_version = "HTTP/1.1"
    server: Recorder

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=600)) as upstream:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            received = bytearray()
            while piece := response.read1(65536):
                received += piece
                self.wfile.write(piece)
            self.server.claims.append(
                Claim(
                    self.path, response.status, response.headers.get("X-Request-Id") or "", usage_of(received.decode())
                )
            )

    do_GET = do_POST = do_OPTIONS = do_DELETE = forward  # noqa: N815 - the names that the base class calls

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the exam prints a table."""


def usage_of(body: str) -> tuple[int, int] | None:
    """Prompt and output tokens in a JSON body or in the events of a stream, by any of the APIs' names."""
    texts = [line[6:] for line in body.splitlines() if line.startswith("data: {")] or [body]
    merged: dict[str, Any] = {}
    for text in texts:
        try:
            for found in usages(json.loads(text)):
                merged |= found
        except ValueError:
            continue
    if not merged:
        return None
    prompt = merged.get("prompt_tokens", merged.get("input_tokens", 0))
    prompt += merged.get("cache_read_input_tokens", 0)  # Anthropic's `input_tokens` leaves them out
    return prompt, merged.get("completion_tokens", merged.get("output_tokens", 0))


def usages(value: Any) -> Iterator[dict[str, Any]]:
    """Every `usage` object of an event: at its top, in its `response`, or in its `message`."""
    for holder in (value, value.get("response"), value.get("message")) if isinstance(value, dict) else ():
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            yield holder["usage"]


@contextmanager
def recording(port: int) -> Iterator[Recorder]:
    """A recorder in front of the server at `port`."""
    with Recorder(port) as recorder:
        thread = threading.Thread(target=recorder.serve_forever, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            recorder.shutdown()
            thread.join()
