"""Fetches pages over HTTP: within named hosts, at checked addresses, at a bounded rate, size and time.

A connection goes to the very address that was checked, so that a name that resolves differently the next time leads
nowhere else. Proxies of the environment are not used.
"""

import http.client
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import SplitResult, urljoin, urlunsplit

from msgspec import Struct

from server.knowledge.sources import Gone, Refused, Status
from server.knowledge.sources.addresses import PORTS, Network, check_host, host_of, parsed, port_of, resolve

MOST_REDIRECTS = 5
IDLE_SECONDS = 15.0
"""How long a host may send nothing."""
WHOLE_SECONDS = 60.0
"""How long one response may take."""
LONGEST_WAIT = 60.0
"""Seconds that `Retry-After` and `Crawl-delay` may ask for."""
REDIRECTS = (301, 302, 303, 307, 308)


class Response(Struct, frozen=True):
    """An answer, its body unpacked."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes
    url: str
    """Where it came from, after redirects."""


class Limits(Struct, frozen=True):
    """What a client may do."""

    hosts: Sequence[str]
    private: Sequence[Network]
    requests_a_second: float
    largest: int
    """Bytes of a body, unpacked."""
    agent: str


class Client:
    """Sends GET requests one at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ready: dict[str, float] = {}
        """When each host may be asked again."""
        self._tls = ssl.create_default_context()

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        delay: float = 0.0,
        redirected: Callable[[str], object] = lambda url: None,
    ) -> Response:
        """The answer for `url`, after redirects within the hosts; raises Refused, or Gone for 404 and 410.

        `delay` is the least time between two requests to the host, where that is longer than the configured one;
        `redirected` is called with the target of each redirect before that is requested, and may raise Refused.
        """
        for _ in range(MOST_REDIRECTS + 1):
            response = self._patient(parsed(url), headers or {}, delay)
            if response.status not in REDIRECTS or "location" not in response.headers:
                return _accepted(response)
            target = urljoin(url, response.headers["location"])
            if url.startswith("https:") and target.startswith("http:"):
                raise Refused(f"it redirects from https to {target}")
            redirected(target)
            url = target
        raise Refused(f"it redirects more than {MOST_REDIRECTS} times")

    def _patient(self, parts: SplitResult, headers: Mapping[str, str], delay: float) -> Response:
        """One request, repeated once if the host asks to wait for a bearable time."""
        response = self._once(parts, headers, delay)
        if response.status in (429, 503):
            wait = response.headers.get("retry-after", "")
            if wait.isdigit() and int(wait) <= LONGEST_WAIT:
                time.sleep(int(wait))
                response = self._once(parts, headers, delay)
        return response

    def _once(self, parts: SplitResult, headers: Mapping[str, str], delay: float) -> Response:
        check_host(parts, self._limits.hosts)
        self._wait(host_of(parts), delay)
        connection = self._connected(parts)
        watch = threading.Timer(WHOLE_SECONDS, _cut, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            asked = {"User-Agent": self._limits.agent, "Accept-Encoding": "identity", "Connection": "close"}
            connection.request("GET", target, headers=asked | dict(headers))
            return self._read(connection.getresponse(), urlunsplit(parts))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"{host_of(parts)} does not answer properly: {str(error) or type(error).__name__}") from None
        finally:
            watch.cancel()
            connection.close()

    def _wait(self, host: str, delay: float) -> None:
        """Keep the rate to `host`."""
        pause = max(1 / self._limits.requests_a_second, min(delay, LONGEST_WAIT))
        now = time.monotonic()
        start = max(now, self._ready.get(host, now))
        self._ready[host] = start + pause
        time.sleep(start - now)

    def _connected(self, parts: SplitResult) -> HTTPConnection:
        """A connection to one of the host's permitted addresses; raises Refused."""
        host, port = parts.hostname or "", port_of(parts)
        problem: OSError | None = None
        for family, address in resolve(host, port, self._limits.private):
            connection = HTTPConnection(host, port, timeout=IDLE_SECONDS)
            connection.default_port = PORTS[parts.scheme]  # left out of the header `Host`
            try:
                opened = socket.socket(family, socket.SOCK_STREAM)
                opened.settimeout(IDLE_SECONDS)
                opened.connect((address, port))
                secure = parts.scheme == "https"
                connection.sock = self._tls.wrap_socket(opened, server_hostname=host) if secure else opened
                return connection
            except OSError as error:
                problem = error
        raise Refused(f"{host_of(parts)} cannot be reached: {problem}")

    def _read(self, answer: HTTPResponse, url: str) -> Response:
        largest = self._limits.largest
        headers = {name.lower(): value for name, value in answer.getheaders()}
        body = b"" if answer.status in REDIRECTS else answer.read(largest + 1)
        if len(body) > largest:
            raise Refused(f"it has more than {largest >> 20} MB (`document_megabytes`)")
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip"):
            body = _unpacked(body, largest)
        elif encoding not in ("identity", ""):
            raise Refused(f"it is sent in the encoding {encoding}, which was not asked for")
        return Response(answer.status, headers, body, url)


def _accepted(response: Response) -> Response:
    """The response, unless its status says that there is none; raises Gone or Refused."""
    if response.status in (404, 410):
        raise Gone(f"the server says that it is gone ({response.status})")
    if response.status not in (200, 304):
        raise Status(response.status)
    return response


def _unpacked(body: bytes, largest: int) -> bytes:
    """The content of a gzip body of at most `largest` bytes; raises Refused."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(body, largest + 1)
    except zlib.error as error:
        raise Refused(f"its gzip encoding is damaged: {error}") from None
    if len(content) > largest:
        raise Refused(f"it unpacks to more than {largest >> 20} MB (`document_megabytes`)")
    return content


def _cut(connected: socket.socket) -> None:
    """End a connection that takes too long, whatever it waits for."""
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has just ended
        return
