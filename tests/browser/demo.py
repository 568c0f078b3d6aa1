"""Chats through the widget on the page of `make demo`, as a visitor would, and takes a screenshot.

Run by CI after `make demo` has started: `python -m tests.browser.demo SCREENSHOT`.
"""

import json
import shutil
import sys
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import FLAGS
from tests.browser.support.drivers import Engine, firefox, installed, minibrowser, webkit

PAGE = "http://127.0.0.1:8001/"
QUESTION = "What is Secateur?"
"""Stored in the pages, so it is answered verbatim."""
MODELLED = "Which pages may embed a skill in their own site?"
"""Not stored: the model chooses what is quoted."""
OFF_TOPIC = "Who won the world cup in 2018?"
ANSWER_MS = 120_000


def main(screenshot: Path) -> None:
    """Fail unless the answer streams into the widget, its tokens are counted and the browser reports no error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(PAGE)
        before = tokens()
        page.get_by_role("button", name="Open chat").click()
        for question in (OFF_TOPIC, QUESTION, MODELLED):
            print(question, "->", chat(page, question))
        linked(page)
        page.wait_for_timeout(2500)  # the page reads its counts every two seconds
        page.screenshot(path=screenshot)
        after = tokens()
        returned(page)
        narrow(browser, screenshot.with_stem(f"{screenshot.stem}-320"))
        browser.close()
    if installed("firefox-esr"):
        with firefox() as engine:
            print("Firefox:", elsewhere(engine))
    if installed("WebKitWebDriver", "Xvfb") and minibrowser():
        with webkit() as engine:
            print("WebKitGTK:", elsewhere(engine))
    print("tokens:", after)
    assert not errors, errors
    assert after["output"] > before["output"]
    assert after["requests"] == before["requests"] + 3


def chat(page: Page, question: str) -> str:
    """Ask one question in the open panel and return the whole answer."""
    asked = page.locator(".question").count()
    page.get_by_role("textbox", name="Your message").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".actions")).to_have_count(asked + 1, timeout=ANSWER_MS)
    answer = page.locator(".answer .text").last
    expect(answer).not_to_be_empty()
    return answer.inner_text()


def linked(page: Page) -> None:
    """The source below the last answer is a page of the documentation that has the heading it names."""
    link = page.locator(".sources a").last.get_attribute("href") or ""
    address, _, anchor = link.partition("#")
    with urllib.request.urlopen(address, timeout=120) as response:
        assert f'id="{anchor}"' in response.read().decode(), link
    print("source:", link)


def returned(page: Page) -> None:
    """Leave the page during another answer; on return it is complete and can be rated."""
    asked = page.locator(".question").count()
    page.get_by_role("textbox", name="Your message").fill(MODELLED)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".answer .text").last).not_to_be_empty(timeout=ANSWER_MS)
    page.reload()  # which opens the panel again
    expect(page.locator(".question")).to_have_count(asked + 1)
    expect(page.locator(".actions")).to_have_count(asked + 1, timeout=ANSWER_MS)
    page.get_by_role("button", name="Good answer").last.click()
    expect(page.get_by_role("button", name="Good answer", pressed=True)).to_be_visible()


def elsewhere(engine: Engine) -> str:
    """Ask a question and await its answer in another browser."""
    root = 'document.querySelector("html > skill-chat").shadowRoot'
    engine.open(PAGE)
    engine.until(f"Boolean({root}?.querySelector('.launcher'))")
    engine.run(f"{root}.querySelector('.launcher').click()")
    engine.until(f"{root}.activeElement?.localName", "textarea")
    engine.press(*QUESTION, "Enter")
    engine.until(f"{root}.querySelectorAll('.actions').length", 1)
    answer: str = engine.run(f"return [...{root}.querySelectorAll('.answer .text')].at(-1).textContent")
    assert answer
    return answer


def narrow(browser: Browser, screenshot: Path) -> None:
    """The page and the open panel on a phone, in dark mode."""
    page = browser.new_page(viewport={"width": 320, "height": 640}, color_scheme="dark")
    page.goto(PAGE)
    page.get_by_role("button", name="Open chat").click()
    expect(page.get_by_role("textbox", name="Your message")).to_be_visible()
    page.screenshot(path=screenshot)


def tokens() -> dict[str, int]:
    """The skill's token counts shown on the page."""
    counts: dict[str, int] = json.load(urllib.request.urlopen(PAGE + "tokens", timeout=120))
    return counts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
