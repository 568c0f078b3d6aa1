"""Firefox by its Marionette protocol and WebKitGTK by WebDriver: Playwright does not drive Debian's builds."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 120.0
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"}


class Engine:
    """A browser that opens pages, runs scripts in them and types."""

    def command(self, name: str, path: str, body: dict[str, Any]) -> Any:
        raise NotImplementedError

    def open(self, url: str) -> None:
        self.command("WebDriver:Navigate", "url", {"url": url})

    def run(self, script: str, *values: Any) -> Any:
        return self.command("WebDriver:ExecuteScript", "execute/sync", {"script": script, "args": list(values)})

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": strokes}]
        self.command("WebDriver:PerformActions", "actions", {"actions": actions})

    def until(self, expression: str, wanted: Any = True) -> None:
        """Wait until the expression evaluates to `wanted`."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.run(f"return {expression}")) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {found!r}, not {wanted!r}"
            time.sleep(0.05)


class Firefox(Engine):
    """A client of one Firefox: JSON messages, each after its length and a colon."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")
        self._read()  # the greeting
        self.command("WebDriver:NewSession", "", {})

    def command(self, name: str, path: str, body: dict[str, Any]) -> Any:
        message = json.dumps([0, 1, name, body]).encode()
        self._file.write(b"%d:%s" % (len(message), message))
        self._file.flush()
        _, _, error, result = self._read()
        assert error is None, error
        return result.get("value") if isinstance(result, dict) else result

    def _read(self) -> Any:
        length = b""
        while (byte := self._file.read(1)) != b":":
            assert byte, "Firefox is gone"
            length += byte
        return json.loads(self._file.read(int(length)))


class WebKit(Engine):
    """A client of one WebKitWebDriver, over HTTP."""

    def __init__(self, address: str) -> None:
        arguments = {"binary": minibrowser(), "args": ["--automation"]}
        wanted = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": arguments}}}
        self._session = f"{address}/session"
        self._session = f"{self._session}/{self.command('', '', wanted)['sessionId']}"

    def command(self, name: str, path: str, body: dict[str, Any]) -> Any:
        url = f"{self._session}/{path}" if path else self._session
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.load(response)["value"]


def minibrowser() -> str:
    """Path of the browser that the driver starts; empty if it is not installed."""
    return next((str(path) for path in Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser")), "")


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(["env", *(f"{k}={v}" for k, v in environment.items()), *command], **quiet)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.terminate()
        started.wait(120)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def connected(port: int) -> socket.socket:
    """Connect as soon as something listens on the port."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        except OSError:
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)


@contextmanager
def firefox() -> Iterator[Engine]:
    """Start a headless Firefox with a fresh profile."""
    port = free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        Path(folder, "user.js").write_text(f'user_pref("marionette.port", {port});\n')
        command = ("firefox-esr", "--headless", "--marionette", "--no-remote", "--profile", folder)
        stack.enter_context(process(*command, MOZ_DISABLE_CONTENT_SANDBOX="1", HOME=folder))
        yield Firefox(stack.enter_context(connected(port)))


@contextmanager
def webkit() -> Iterator[Engine]:
    """Start a WebKitGTK on a virtual display."""
    port, display = free_port(), f":{free_port() % 10000 + 100}"
    with ExitStack() as stack:
        stack.enter_context(process("Xvfb", display, "-screen", "0", "1280x800x24"))
        settings = {"DISPLAY": display, "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1", "GDK_BACKEND": "x11"}
        stack.enter_context(process("WebKitWebDriver", f"--port={port}", **settings))
        connected(port).close()
        yield WebKit(f"http://127.0.0.1:{port}")


def installed(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)
