"""A chat client over raw sockets, which may leave at any moment."""

import http.client
import json
import socket
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from tests.support.harness import KEY

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True, "stream_options": {"include_usage": True}}


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request; returns the socket, whose response the caller may read."""
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=120)
    content = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    try:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    except OSError:  # the server was killed in between
        connection.close()
        raise
    return connection


def get(url: str, path: str) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def everything(connection: socket.socket) -> bytes:
    """All bytes until the server closes."""
    raw = b""
    with connection:
        while chunk := connection.recv(65536):
            raw += chunk
    return raw


def received(connection: socket.socket) -> tuple[str, list[Any]]:
    """A whole stream: its text, and its decoded events."""
    raw = everything(connection)
    events = [line[6:].strip() for line in raw.decode().split("\n") if line.startswith("data: ")]
    decoded: list[Any] = [event if event == "[DONE]" else json.loads(event) for event in events]
    deltas = [event["choices"][0]["delta"] for event in decoded if event != "[DONE]" and event.get("choices")]
    return "".join(delta.get("content", "") for delta in deltas), decoded
