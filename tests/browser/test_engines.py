"""The core of the widget in Firefox and in WebKitGTK, under the same policies; Chromium has all the other tests."""

from collections.abc import Iterator

import pytest

from tests.browser.drivers import Engine, firefox, installed, minibrowser, webkit
from tests.browser.stub import Stub

ROOT = 'document.querySelector("html > skill-chat").shadowRoot'
ENGINES = {
    "firefox": (firefox, installed("firefox-esr")),
    "webkit": (webkit, installed("WebKitWebDriver", "Xvfb") and minibrowser() != ""),
}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    start, there = ENGINES[request.param]
    if not there:
        pytest.skip(f"Debian's {request.param} is not installed")
    with start() as started:
        yield started


def text(selector: str) -> str:
    return f"[...{ROOT}.querySelectorAll('{selector}')].at(-1)?.textContent"


def open_chat(engine: Engine, url: str) -> None:
    engine.open(url)
    engine.until(f"Boolean({ROOT}?.querySelector('.launcher'))")
    engine.run(
        "window.violations = [];"
        "document.addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective));"
        f"{ROOT}.querySelector('.launcher').click()"
    )
    engine.until(f"{ROOT}.activeElement?.localName", "textarea")


@pytest.mark.parametrize("path", ["/nonce", "/hostile"])
def test_a_chat_by_keyboard(engine: Engine, host: str, stub: Stub, path: str) -> None:
    stub.delay = 0.1
    stub.pieces, stub.cuts = ("# Roses\n\nIn *late*", " winter.\n\n| a |\n|---|\n| snake_case |\n\n- one\n- two"), 1
    open_chat(engine, host + path)
    engine.press(*"When?", "Enter")
    engine.until(f"{ROOT}.querySelectorAll('.actions').length", 1)
    shown = engine.run(f"return {ROOT}.querySelector('.answer:last-child .text').textContent")
    assert shown == "RosesIn late winter.asnake_caseonetwo"
    assert stub.asked[0]["text"] == "When?"
    assert stub.resumed in (["rep_1?from=2"], ["rep_1?from=3"])  # the last event may break with the connection
    box = engine.run(
        f"const b = {ROOT}.querySelector('.panel').getBoundingClientRect(); return [b.width, b.height > 300]"
    )
    assert box == [400, True]
    engine.press("Escape")
    engine.until(f"{ROOT}.activeElement?.className", "launcher")
    assert engine.run("return violations") == []


def test_stop_and_trouble(engine: Engine, host: str, stub: Stub) -> None:
    stub.pieces, stub.hold = ("Half an",), True
    open_chat(engine, f"{host}/nonce")
    engine.press(*"Go on", "Enter")
    engine.until(text(".answer .text"), "Half an")
    engine.run(f"{ROOT}.querySelector('.stop').click()")
    engine.until(text(".hint"), "Stopped.")
    stub.hold, stub.status, stub.headers = False, 429, {"Retry-After": "60"}
    engine.press(*"Again", "Enter")
    engine.until(
        f"{text('.trouble-line span')}?.slice(0, 50)", "The assistant is busy. You can try again in 60\u00a0s."
    )
    assert engine.run(f"return {ROOT}.querySelector('.send').disabled") is True


def test_elements_and_accents(engine: Engine, host: str, stub: Stub) -> None:
    engine.open(f"{host}/elements")
    panel = "document.querySelectorAll('skill-chat')[1].shadowRoot.querySelector('.panel')"
    engine.until(f"Boolean({panel})")
    found = engine.run(
        f"const s = getComputedStyle({panel}.querySelector('.send')); return [s.backgroundColor, s.color]"
    )
    assert found[0] not in ("rgba(0, 0, 0, 0)", "transparent")
    assert found[0] != found[1]
