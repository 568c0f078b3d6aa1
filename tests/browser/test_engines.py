"""The core of the widget in Firefox and WebKitGTK, under the same policies; all other tests run in Chromium."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import Start
from tests.browser.support.drivers import Engine, firefox, installed, minibrowser, webkit
from tests.browser.support.hosts import document
from tests.browser.support.states import ANSWER, SKILL, SOURCES
from tests.browser.support.stub import Stub
from tests.browser.widget.test_accessibility import AXE
from tests.browser.widget.test_examples import Made, page_of
from tests.exams.servers.app_server import listening

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
    assert stub.resumed in (["rep_1?from=2"], ["rep_1?from=3"])  # the last event may be lost with the connection
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
    engine.until(f"{ROOT}.querySelector('.send').disabled")


def test_a_composition_another_answer_and_a_new_chat(engine: Engine, host: str, stub: Stub) -> None:
    open_chat(engine, f"{host}/nonce")
    engine.run(
        f"const field = {ROOT}.querySelector('textarea'); field.value = 'One';"
        "const key = { key: 'Enter', keyCode: 229, bubbles: true, composed: true };"
        "field.dispatchEvent(new KeyboardEvent('keydown', key))"
    )
    assert (engine.run(f"return {ROOT}.querySelector('textarea').value"), stub.asked) == ("One", [])
    engine.press("Enter")
    engine.until(f"{ROOT}.querySelectorAll('.again').length", 1)
    stub.pieces = ("Another",)
    engine.run(f"{ROOT}.querySelector('.again').focus()")
    engine.press("Enter")
    engine.until(f"{ROOT}.activeElement?.localName", "textarea")
    engine.until(f"{text('.answer .text')} + {ROOT}.querySelectorAll('.again').length", "Another1")
    engine.run("SkillChat('reset'); SkillChat('send', 'After')")
    engine.until(f"{ROOT}.querySelectorAll('.question').length + {text('.question')}", "1You saidAfter")
    engine.until(f"{ROOT}.querySelectorAll('.again').length", 1)
    assert stub.tokens_of_questions == ["token-1", "token-1", "token-2"]


def test_a_connection_that_dies_without_a_word(engine: Engine, host: str, stub: Stub) -> None:
    stub.silent = 1
    open_chat(engine, f"{host}/nonce")
    engine.run("const wait = setTimeout; window.setTimeout = (f, ms) => wait(f, ms === 45000 ? 500 : ms)")
    engine.press(*"When?", "Enter")
    engine.until(f"{ROOT}.querySelectorAll('.actions').length", 1)
    assert engine.run(f"return {text('.answer .text')}") == "Hello world."
    assert len(stub.resumed) == 1


def test_elements_and_accents(engine: Engine, host: str, stub: Stub) -> None:
    engine.open(f"{host}/elements")
    panel = "document.querySelectorAll('skill-chat')[1].shadowRoot.querySelector('.panel')"
    engine.until(f"Boolean({panel})")
    found = engine.run(
        f"const s = getComputedStyle({panel}.querySelector('.send')); return [s.backgroundColor, s.color]"
    )
    assert found[0] not in ("rgba(0, 0, 0, 0)", "transparent")
    assert found[0] != found[1]


def test_an_app_that_failed_to_load_loads_on_the_next_try(engine: Engine, host: str, made: Made) -> None:
    """These browsers cache a failed import under its address."""
    other = Stub()
    other.down = True
    with listening(other.app()) as origin:
        line = f'<script async src="{origin}/widget.js" data-skill="help"></script>'
        engine.open(host + page_of(made, document(line), f"script-src {origin}; connect-src {origin}"))
        engine.until(f"Boolean({ROOT}?.querySelector('.launcher'))")
        for _ in range(2):
            engine.run(f"{ROOT}.querySelector('.launcher').click()")
            engine.until(f"{ROOT}.querySelector('output')?.textContent", "Chat unavailable")
        other.down = False
        engine.run(f"{ROOT}.querySelector('.launcher').click()")
        engine.until(f"{ROOT}.activeElement?.localName", "textarea")
        assert engine.run(f"return {ROOT}.querySelector('output')") is None


def test_a_page_that_keeps_backdrop_focus_and_selection(engine: Engine, host: str, stub: Stub) -> None:
    open_chat(engine, f"{host}/hostile")
    shown = engine.run(
        "const host = document.querySelector('html > skill-chat');"
        "document.documentElement.style.cssText = 'user-select: none; -webkit-user-select: none';"
        "document.addEventListener('focusin', e => { if (e.target !== document.body) e.target.blur() });"
        f"{ROOT}.activeElement.blur(); {ROOT}.querySelector('textarea').focus();"
        "const style = getComputedStyle(host);"
        "return [getComputedStyle(host, '::backdrop').display, style.userSelect ?? style.webkitUserSelect]"
    )
    assert shown == ["none", "text"]
    engine.press(*"When?", "Enter")
    engine.until(text(".answer .text"), "Hello world.")


def violations(engine: Engine) -> Any:
    engine.run(
        "window.found = 0; axe.run(document, { resultTypes: ['violations'] }).then(r => window.found = r.violations)"
    )
    engine.until("Array.isArray(window.found)")
    return engine.run("return found.map(rule => [rule.id, rule.nodes.map(node => node.html)])")


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: run `npm ci` in widget/")
def test_axe_finds_nothing(engine: Engine, host: str, stub: Stub) -> None:
    stub.skill, stub.pieces, stub.citations = dict(SKILL), (ANSWER,), SOURCES
    engine.open(host)
    engine.until(f"Boolean({ROOT}?.querySelector('.launcher'))")
    engine.run(AXE.read_text())
    found = {"closed": violations(engine)}
    engine.run(f"{ROOT}.querySelector('.launcher').click()")
    engine.until(f"{ROOT}.querySelectorAll('.starter').length", 3)
    found["greeting"] = violations(engine)
    engine.press(*"When?", "Enter")
    engine.until(f"{ROOT}.querySelectorAll('.sources').length", 1)
    found["answered"] = violations(engine)
    engine.run(f"{ROOT}.querySelector('summary').focus()")
    engine.press("Enter")
    engine.until(
        f"{ROOT}.querySelector('.sources blockquote').clientHeight > 100 && {ROOT}.querySelector('details').open"
    )
    engine.until(f"{ROOT}.querySelector('.sources blockquote').tabIndex", 0)
    found["quoted"] = violations(engine)
    engine.run(f"{ROOT}.querySelector('.up').click()")
    engine.until(f"{ROOT}.querySelectorAll('.comment').length", 1)
    found["rated"] = violations(engine)
    stub.status, stub.headers = 429, {"Retry-After": "60"}
    engine.run(f"{ROOT}.querySelector('.composer textarea').focus()")
    engine.press(*"Again", "Enter")
    engine.until(f"{ROOT}.querySelectorAll('.trouble-line').length", 1)
    found["busy"] = violations(engine)
    assert found == {state: [] for state in found}


def test_on_the_server_itself_a_reply_outlives_a_reload(engine: Engine, start: Start) -> None:
    words = "One two three four five six seven eight."
    origin, server = start(words, passes=20)  # WebKit may hold the last events back
    open_chat(engine, origin)
    engine.press(*"Count", "Enter")
    engine.until(f"{text('.answer .text')}?.slice(0, 3)", "One")
    open_chat(engine, origin)
    server.runner.release()
    engine.until(f"{ROOT}.querySelectorAll('.actions').length", 1)
    assert engine.run(f"return {text('.answer .text')}") == words
    engine.run("SkillChat('reset')")
    engine.until(f"{ROOT}.querySelectorAll('.question').length", 0)
    engine.until('/secret|resume":"./.test(JSON.stringify(sessionStorage))', False)
