"""A browser, and a host page and a server on two origins; a policy violation fails any test."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright
from playwright.sync_api import Request as Asked
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.web.api.demo_page import page as host_page
from server.web.app import host_page as real_host_page
from tests.browser.support.drivers import free_port
from tests.browser.support.hosts import extra_pages
from tests.browser.support.stub import Stub
from tests.exams.servers.app_server import listening
from tests.support.harness import HELP, Served, parts, says, served

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 120_000  # for a busy machine; what is already there returns at once
expect.set_options(timeout=PATIENCE_MS)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
window.attacks = 0;
window.attack = () => attacks++;
"""


def settled(page: Page) -> None:
    """Wait until the page has run what it queued: two frames, then an idle moment."""
    page.evaluate("""async () => {
        for (let n = 0; n < 2; n++) await new Promise((done) => requestAnimationFrame(done));
        await new Promise((done) => requestIdleCallback(done));
    }""")


@pytest.fixture(scope="module")
def debugging_port() -> int:
    """The port at which other programs control the browser."""
    return free_port()


@pytest.fixture(scope="module")  # Playwright runs an event loop in this thread; later tests must not meet it
def browser(debugging_port: int) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Debian's chromium is not installed")
    flags = [*FLAGS, f"--remote-debugging-port={debugging_port}"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="session")
def stub_server() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with listening(stub.app()) as origin:
        yield stub, origin


@pytest.fixture
def stub(stub_server: tuple[Stub, str]) -> Stub:
    stub_server[0].reset()
    return stub_server[0]


@pytest.fixture(scope="session")
def server(stub_server: tuple[Stub, str]) -> str:
    """The origin of the server."""
    return stub_server[1]


@pytest.fixture(scope="session")
def made() -> dict[str, Response]:
    """The host's responses under /made/, by name; a test adds its own."""
    return {}


@pytest.fixture(scope="session")
def host(stub_server: tuple[Stub, str], made: dict[str, Response]) -> Iterator[str]:
    """The origin of the page that embeds the widget."""

    async def serve_made(request: Request) -> Response:
        return made[request.path_params["name"]]

    url = f"{stub_server[1]}/widget.js"
    app = host_page("help", url, lambda: {"input": 1234, "cached": 20, "output": 56, "requests": 3})
    app.router.routes.extend([*extra_pages(url), Route("/made/{name}", serve_made)])
    with listening(app) as origin:
        yield origin


class Visitor:
    """Opens pages; records their requests and errors."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.pages: list[Page] = []
        self.asked: list[str] = []
        self.errors: list[str] = []

    def __call__(self, url: str, **options: Any) -> Page:
        page = self.browser.new_context(**{"reduced_motion": "reduce", **options}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(WATCH)
        page.on("request", self.note_request)
        page.on("pageerror", self.note_error)
        page.goto(url)
        self.pages.append(page)
        return page

    def note_request(self, request: Asked) -> None:
        if not request.url.startswith("data:"):
            self.asked.append(request.url)

    def note_error(self, error: Error) -> None:
        self.errors.append(str(error))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Visitor]:
    """Opens pages; at the end, an error, a policy violation or an executed attack in one fails the test."""
    visitor = Visitor(browser)
    yield visitor
    for page in visitor.pages:
        violations, attacks = page.evaluate("[violations, attacks]")
        page.context.close()
        assert (violations, attacks, visitor.errors) == ([], 0, [])


class Later:
    """An app set after its origin is known."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


Start = Callable[..., tuple[str, Served]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server that replies `text`, held after `passes` passes if given, and its host page; returns both."""
    with ExitStack() as stack:

        def run(text: str, *, passes: int = 0, origins: tuple[str, ...] = (), **settings: Any) -> tuple[str, Served]:
            page = Later()
            origin = stack.enter_context(listening(page))
            skill = msgspec.structs.replace(HELP, origins=origins or (origin,))
            runner = says(tmp_path, text)
            if passes:
                runner.hold(passes)
            made = parts(tmp_path, runner, (skill,), **settings)
            server = stack.enter_context(served(made, runner))
            stack.callback(runner.release)  # before the server stops
            port = int(server.url.rsplit(":", 1)[1])
            config = msgspec.structs.replace(made.config, port=port, page_port=1)
            embedding = real_host_page(msgspec.structs.replace(made, config=config))
            assert embedding
            page.app = embedding
            return origin, server

        yield run
