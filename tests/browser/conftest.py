"""A browser, a host page on one origin and the server on another; every test fails on a policy violation."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from server.page import page as host_page
from tests.browser.hosts import extra_pages
from tests.browser.stub import Stub, listening

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
window.attacks = 0;
window.attack = () => attacks++;
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Debian's chromium is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def stub_server() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with listening(stub.app) as origin:
        yield stub, origin


@pytest.fixture
def stub(stub_server: tuple[Stub, str]) -> Stub:
    stub_server[0].reset()
    return stub_server[0]


@pytest.fixture(scope="session")
def host(stub_server: tuple[Stub, str]) -> Iterator[str]:
    """The origin of the page that embeds the widget."""
    url = f"{stub_server[1]}/widget.js"
    app = host_page("help", url, lambda: {"input": 1234, "cached": 20, "output": 56, "requests": 3})
    app.router.routes.extend(extra_pages(url))
    with listening(lambda: app) as origin:
        yield origin


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; what it asked for is in `page.asked`, and errors and violations fail the test at its end."""
    pages: list[Page] = []

    def visit(url: str, **options: Any) -> Page:
        page = browser.new_context(**{"reduced_motion": "reduce", **options}).new_page()
        page.set_default_timeout(5000)
        page.add_init_script(WATCH)
        page.asked = []  # type: ignore[attr-defined]
        page.errors = []  # type: ignore[attr-defined]
        page.on("request", lambda request: page.asked.append(request.url))  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
        page.goto(url)
        pages.append(page)
        return page

    yield visit
    for page in pages:
        violations, errors = page.evaluate("[violations, attacks]"), page.errors  # type: ignore[attr-defined]
        page.context.close()
        assert (violations, errors) == ([[], 0], [])
