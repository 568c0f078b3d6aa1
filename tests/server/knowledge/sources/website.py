"""A website on this machine that records its requests."""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

PAGE = "<html><head><title>{0}</title></head><body><nav>Home</nav><main><h1>{0}</h1><p>{1}</p></main></body></html>"


class Answer(NamedTuple):
    """What a path answers."""

    body: bytes | str = b""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


class Website:
    """Answers by path; `asked` has every request's path and headers."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Answer | Callable[[dict[str, str]], Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def page(self, path: str, title: str, text: str, **headers: str) -> None:
        self.answers[path] = Answer(PAGE.format(title, text), headers={"Content-Type": "text/html", **headers})

    def paths(self) -> list[str]:
        found = [path for path, _ in self.asked]
        self.asked.clear()
        return found

    def sitemap(self, *paths: str) -> None:
        places = "".join(f"<url><loc>{path if '://' in path else self.address + path}</loc></url>" for path in paths)
        self.answers["/sitemap.xml"] = Answer(
            f"<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{places}</urlset>"
        )


@contextmanager
def website(certificate: Path | None = None) -> Iterator[Website]:
    """Serves until the end of the block, over TLS with the key and `certificate` of a PEM file if one is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            site.asked.append((self.path, headers))
            found = site.answers.get(self.path, Answer("none", 404))
            answer = found(headers) if callable(found) else found
            body = answer.body.encode() if isinstance(answer.body, str) else answer.body
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Website(server.server_address[1])
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        site.address = site.address.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
