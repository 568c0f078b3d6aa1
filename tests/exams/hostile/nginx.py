"""A real nginx with default settings in front of a server, and the delay it adds to the first event."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.chat_client import STREAM, send

# Only what running beside another nginx and as any user needs; buffering and all else are nginx's defaults.
SETTINGS = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {servers}
}}
"""
DEFAULTS = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}"


def installed() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx") is not None


@contextmanager
def proxy(url: str) -> Iterator[str]:
    """Run an nginx that proxies to `url`; yields its address."""
    port = free_port()
    with running(DEFAULTS.format(port=port, url=url), port):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """A free port of this machine."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def running(servers: str, port: int) -> Iterator[None]:
    """Run an nginx with these server blocks, one of which listens on `port`."""
    with tempfile.TemporaryDirectory(prefix="secateur-nginx-") as folder:
        Path(folder).chmod(0o755)  # the workers run as another user
        settings = Path(folder) / "nginx.conf"
        settings.write_text(SETTINGS.format(folder=folder, servers=servers))
        with subprocess.Popen(["nginx", "-c", str(settings)], stderr=subprocess.DEVNULL) as server:
            try:
                _wait(port)
                yield
            finally:
                server.terminate()
                server.wait(10)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "nginx did not start"
            time.sleep(0.02)


def first_events(url: str, count: int) -> list[float]:
    """Seconds from request to first text, sorted."""
    taken = []
    for _ in range(count):
        started, raw = time.monotonic(), b""
        with send(url, STREAM) as connection:
            while b'"content":"0"' not in raw:
                chunk = connection.recv(4096)
                assert chunk, raw
                raw += chunk
            taken.append(time.monotonic() - started)
            while connection.recv(65536):
                pass
    return sorted(taken)


def arrivals(url: str) -> list[float]:
    """Arrival of each part of one streamed reply, in seconds after the first."""
    assert urlsplit(url).hostname
    with send(url, STREAM) as connection:
        times = []
        while connection.recv(4096):
            times.append(time.monotonic())
    return [moment - times[0] for moment in times]
