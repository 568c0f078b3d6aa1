"""Photographs every state of the widget, the demo's page and the admin page, for people to look at.

`python -m tests.browser.pictures.widget FOLDER [LOOK ...]`; nothing is compared.
"""

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec.structs import replace
from playwright.sync_api import Browser, Page, expect, sync_playwright

from server.skills.skill import Skill
from server.web.api.demo_page import page as host_page
from tests.browser.conftest import FLAGS
from tests.browser.support.hosts import extra_pages
from tests.browser.support.states import SKILL, walk
from tests.browser.support.states import ask as ask_widget
from tests.browser.support.stub import Stub
from tests.conftest import ROOT
from tests.exams.servers.app_server import listening
from tests.server.web.test_budgets import ASK, ask
from tests.support.harness import HELP, OTHER, parts, says, served, until

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 320, "height": 640}
QUIET: dict[str, Any] = {"viewport": WIDE, "reduced_motion": "reduce"}
LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "light": ("/", {}),
    "dark": ("/", {"color_scheme": "dark"}),
    "forced": ("/", {"forced_colors": "active"}),
    "forced-dark": ("/", {"forced_colors": "active", "color_scheme": "dark"}),
    "arabic": ("/arabic", {}),
    "narrow": ("/", {"viewport": NARROW}),
    "zoomed": ("/", {"viewport": {"width": 320, "height": 200}, "device_scale_factor": 4}),
}
DEMO_SKILL = ROOT / "examples/demo/skills/help.toml"
LINE = """One line, anywhere in the page:

```html
<script async src="https://chat.example.org/widget.js" data-skill="help"></script>
```"""
GUIDE = {"title": "The chat on your page", "url": "http://127.0.0.1:8001/docs/guide/widget/", "passage": LINE}
REPLIES = {  # of a server with the demo's skill and four of its pages
    "What is the weather in Paris?": ("I found no answer to that in Secateur's pages.", []),
    "How do I put the chat on my page?": (LINE, [GUIDE]),
}
ARREST = "(document.querySelector('html > skill-chat').shadowRoot.querySelector('.panel')?.getAnimations() ?? [])"


def main(folder: Path, looks: list[str]) -> None:
    """Write `LOOK-NN-STATE.png` for each state into the folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    stub = Stub()
    with listening(stub.app()) as server, sync_playwright() as playwright:
        url = f"{server}/widget.js"
        app = host_page("help", url, lambda: {"input": 1234, "cached": 20, "output": 56, "requests": 3})
        app.router.routes.extend(extra_pages(url))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        with listening(app) as host:
            for name in looks or LOOKS:
                path, options = LOOKS[name]
                with opened(browser, host + path, **options) as page:
                    for number, state in enumerate(walk(page, stub)):
                        page.screenshot(path=folder / f"{name}-{number:02}-{state}.png")
            apart(browser, host, stub, folder)
            closed(browser, host, stub, folder)
            demo(browser, host, stub, folder)
        admin(browser, folder)
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**{**QUIET, **options})
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def apart(browser: Browser, host: str, stub: Stub, folder: Path) -> None:
    """Views other than a floating panel's states: its appearance, inline chats, and both on paper."""
    stub.reset()
    with opened(browser, host, reduced_motion="no-preference") as page:
        page.locator(".launcher").click()
        until(lambda: page.evaluate(f"{ARREST}.length"))  # the page's policy forbids wait_for_function
        page.evaluate(f"{ARREST}.forEach(a => {{ a.pause(); a.currentTime = 60 }})")
        page.screenshot(path=folder / "arriving.png")
        page.emulate_media(media="print")
        page.screenshot(path=folder / "demo-print.png", full_page=True)
    for scheme in ("light", "dark"):
        with opened(browser, host, color_scheme=scheme) as page:
            page.screenshot(path=folder / f"demo-{scheme}.png", full_page=True)
    stub.skill = dict(SKILL)  # an inline chat asks for it at once
    with opened(browser, f"{host}/inline") as page:
        page.screenshot(path=folder / "inline-closed.png")
        for state in walk(page, stub):
            if state == "rated":
                break
        page.screenshot(path=folder / "inline.png", full_page=True)
        page.locator(".sources").screenshot(path=folder / "sources.png")
        page.emulate_media(media="print")
        page.screenshot(path=folder / "inline-print.png", full_page=True)


def closed(browser: Browser, host: str, stub: Stub, folder: Path) -> None:
    """The panel before its greeting, and the launcher after a failed load and after an answer."""
    for name, path in (("", "/"), ("-left", "/options")):
        with opened(browser, host + path) as page:
            stub.down = True
            page.locator(".launcher").click()
            page.locator("output").wait_for()
            page.screenshot(path=folder / f"unavailable{name}.png")
            stub.down = False
            stub.held.add("session")
            page.locator(".launcher").click()
            page.locator(".panel").wait_for()
            page.screenshot(path=folder / f"connecting{name}.png")
            stub.held.clear()
            stub.allowed = 1
            ask_widget(page, "When?")
            page.keyboard.press("Escape")
            stub.allowed = math.inf
            page.locator(".launcher[aria-description]").wait_for()
            page.screenshot(path=folder / f"answered-closed{name}.png")


def demo(browser: Browser, host: str, stub: Stub, folder: Path) -> None:
    """`chat.png`, the README's picture: the demo's page and skill, with a refusal and an answer with its source."""
    skill = Skill.read(DEMO_SKILL)
    stub.reset()
    stub.skill = {"name": skill.name, "title": skill.title, "greeting": skill.greeting, "starters": skill.starters}
    with opened(browser, host, viewport={"width": 1280, "height": 745}) as page:
        page.locator(".launcher").click()
        for number, (question, (text, sources)) in enumerate(REPLIES.items(), 1):
            stub.pieces, stub.citations = (text,), sources
            ask_widget(page, question)
            expect(page.locator(".actions")).to_have_count(number)
        page.screenshot(path=folder / "chat.png")


def admin(browser: Browser, folder: Path) -> None:
    """The admin page of a server that has counted a few replies."""
    with TemporaryDirectory() as scratch:
        runner = says(Path(scratch), "Good day.")
        with served(parts(Path(scratch), runner, (replace(HELP, tokens_per_day=1000), OTHER)), runner) as server:
            for _ in range(3):
                ask(server, ASK)
            for scheme, viewport in (("light", WIDE), ("dark", WIDE), ("light", NARROW)):
                with opened(browser, f"{server.admin}/admin", color_scheme=scheme, viewport=viewport) as page:
                    page.locator("#days svg").wait_for()
                    page.screenshot(path=folder / f"admin-{scheme}-{viewport['width']}.png", full_page=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
