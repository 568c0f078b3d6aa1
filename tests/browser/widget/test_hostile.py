"""Pages hostile to embedded widgets: old libraries, patched globals, captured scroll and focus, odd options."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from starlette.responses import Response

from tests.browser.conftest import Visitor, settled
from tests.browser.support.hosts import document
from tests.browser.support.states import ANSWER, SOURCES
from tests.browser.support.stub import Stub
from tests.browser.test_build import needs_node
from tests.browser.widget.test_examples import Made, bundle, page_of
from tests.browser.widget.test_widget import answer, ask, open_chat

LIBRARIES = {name: Path(f"/usr/share/javascript/{name}/{name}.js") for name in ("prototype", "mootools")}
# Properties of options that browser functions take, and of objects that the widget reads.
MEMBERS = """
mode delegatesFocus slotAssignment clonable serializable customElementRegistry signal method body headers cache title
detail once passive capture error bubbles cancelable composed view integrity keepalive redirect window duplex priority
fatal ignoreBOM stream preventScroll focusVisible behavior block inline baseURL media disabled referrer referrerPolicy
credentials key value done resume skill text data id name src href target rel role class next index groups kind code
seconds open children source address align rows head items start images greeting starters token resumed shown node
inner persist reason extend each clone map toJSON forEach bind remove select find filter keys entries call apply
"""
NAMES = MEMBERS.split()
HYDRATED = """
import { hydrateRoot } from "react-dom/client";
const App = () => <html lang="en"><head><title>Host</title><link rel="icon" href="data:," />
    <script async src="%s/widget.js" data-skill="help" /></head><body><main><h1>Host</h1></main></body></html>;
window.recovered = [];
window.hydrate = () => hydrateRoot(document, <App />, { onRecoverableError: error => recovered.push(String(error)) });
"""


def script(code: str) -> str:
    return f'<script nonce="n">{code}</script>'


@pytest.fixture
def visit(open_page: Visitor, host: str, server: str, made: Made) -> Any:
    """Opens a page with `head` before the script line, or with other lines."""

    def opened(head: str = "", body: str = "<main><h1>Host</h1></main>", line: str = "", policy: str = "") -> Page:
        own = line or f'<script async src="{server}/widget.js" data-skill="help"></script>'
        strict = f"{policy}script-src 'nonce-n' 'self' {server}; connect-src {server}; style-src 'nonce-n'"
        return open_page(host + page_of(made, document(head + own, body), strict))

    return opened


def chat_about_everything(page: Page, stub: Stub) -> None:
    """Two questions, an answer of every kind, a rating with a comment, a new chat, and the way out."""
    stub.pieces, stub.citations = [ANSWER[at : at + 40] for at in range(0, len(ANSWER), 40)], SOURCES
    open_chat(page)
    for number in (1, 2):
        ask(page, "When?")
        expect(page.locator(".actions")).to_have_count(number)
        expect(answer(page).locator("td")).to_have_count(9)
    page.get_by_role("button", name="Good answer").last.click()
    page.get_by_role("textbox", name="What should we know?").fill("Thanks")
    page.get_by_role("button", name="Send feedback").click()
    expect(page.locator(".hint")).to_have_text("Thank you for your feedback.")
    assert stub.ratings[-1] == {"reply": "rep_2", "rating": "up", "comment": "Thanks"}
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".question")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Open chat")).to_be_focused()


@pytest.mark.parametrize("name", LIBRARIES)
def test_old_libraries_that_change_every_element(visit: Any, stub: Stub, made: Made, name: str) -> None:
    if not LIBRARIES[name].exists():
        pytest.skip(f"Debian's libjs-{name} is not installed")
    made["library.js"] = Response(LIBRARIES[name].read_bytes(), media_type="text/javascript")
    own = "script-src-attr 'unsafe-inline'; style-src-attr 'unsafe-inline'; "  # needed by the library itself
    chat_about_everything(visit('<script src="/made/library.js"></script>', policy=own), stub)


@pytest.mark.parametrize("value", ["'bad'", "() => 'bad'"])
def test_an_object_prototype_full_of_members(visit: Any, stub: Stub, value: str) -> None:
    chat_about_everything(
        visit(script(f"for (const name of {json.dumps(NAMES)}) Object.prototype[name] = {value}")), stub
    )


def test_a_backdrop_for_the_pages_own_dialogs(visit: Any) -> None:
    page = visit('<style nonce="n">::backdrop { display: block; background: rgb(9 9 9 / .8) !important }</style>')
    open_chat(page)
    shown = "e => getComputedStyle(e, '::backdrop').display"
    assert page.locator("skill-chat").evaluate(shown) == "none"


def test_a_page_that_keeps_wheel_focus_and_selection(visit: Any, stub: Stub) -> None:
    keeps = """for (const target of [document, window]) for (const name of ["wheel", "touchmove"])
        target.addEventListener(name, e => e.preventDefault(), { passive: false });
    document.addEventListener("focusin", e => modal.contains(e.target) || modal.focus());"""
    forbids = "<style nonce='n'>* { user-select: none; -webkit-user-select: none }</style>"
    page = visit(forbids, f"<div id=modal tabindex=-1><input></div>{script(keeps)}")
    stub.pieces = ("word\n\n" * 60,)
    open_chat(page)
    page.keyboard.type("Go on")
    page.keyboard.press("Enter")
    expect(page.locator(".actions")).to_be_visible()
    assert stub.asked[0]["text"] == "Go on"
    log = page.get_by_role("log")
    box, bottom = log.bounding_box(), log.evaluate("e => e.scrollTop")
    page.mouse.move(box["x"] + 50, box["y"] + 100)
    page.mouse.wheel(0, -300)
    expect(page.locator(".latest")).to_be_visible()
    assert log.evaluate("e => e.scrollTop") == bottom - 300
    assert answer(page).evaluate("e => getComputedStyle(e).userSelect") == "text"


def test_a_page_with_a_constant_random_still_asks_two_questions(visit: Any, stub: Stub) -> None:
    """Visual regression tests make Math.random a constant."""
    page = visit(script("Math.random = () => 0.5"))
    open_chat(page)
    for number in (1, 2):
        ask(page, "Same")
        expect(page.locator(".actions")).to_have_count(number)
    first, second = [asked["message"] for asked in stub.asked]
    assert first != second


def test_another_products_widget_js(visit: Any, stub: Stub, server: str, made: Made) -> None:
    made["widget.js"] = Response("", media_type="text/javascript")
    ours = f'<script type="module" src="{server}/widget.js" data-skill="help"></script>'
    page = visit('<script src="/made/widget.js"></script>', line=ours)
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")


def test_options_that_are_off_are_off(visit: Any, stub: Stub, server: str) -> None:
    line = f'<script async src="{server}/widget.js?utm%20source=x&amp;x[]=1&amp;skill=help" data-open="false"></script>'
    page = visit(line=line)
    expect(page.get_by_role("button", name="Open chat")).to_be_visible()
    page.evaluate("""() => {
        window.texts = [];
        document.addEventListener("skillchat:message", e => texts.push(e.detail.text ?? null));
        SkillChat("destroy");
        SkillChat("init", { skill: "help", open: false, eventText: false, title: undefined, greeting: null });
    }""")
    settled(page)
    expect(page.locator(".panel")).to_have_count(0)
    page.evaluate("SkillChat('send', 'Private')")
    expect(answer(page)).to_have_text("Hello world.")
    assert page.evaluate("texts") == [None]
    expect(page.get_by_role("dialog", name="Garden help")).to_be_visible()


def test_two_skills_whose_lines_run_again(visit: Any, stub: Stub) -> None:
    page = visit()
    page.evaluate("for (const skill of ['help', 'other', 'help', 'other']) SkillChat('init', { skill })")
    expect(page.locator("skill-chat")).to_have_count(2)
    page.evaluate("SkillChat('init', { skill: 'help' }); SkillChat('send', 'To help')")
    expect(answer(page)).to_have_text("Hello world.")
    assert [session["skill"] for session in stub.sessions] == ["help"], "calls mean the chat that init named last"
    page.evaluate("""() => {
        const place = document.querySelector("main");
        for (let n = 0; n < 2; n++) {
            place.replaceChildren();
            SkillChat("init", { skill: "inline", mode: "inline", target: "main" });
        }
    }""")
    expect(page.locator("main skill-chat")).to_have_count(1)


def test_a_chat_removed_before_its_app_loads_requests_nothing(visit: Any, stub: Stub) -> None:
    page = visit()
    page.evaluate("""async () => {
        for (let n = 0; n < 50; n++) {
            const chat = document.createElement("skill-chat");
            chat.setAttribute("skill", "help");
            chat.setAttribute("open", "");
            document.body.append(chat);
            chat.remove();
        }
    }""")
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    assert len(stub.sessions) == 1


@needs_node
def test_react_that_owns_the_whole_document(visit: Any, stub: Stub, server: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "main.jsx").write_text(HYDRATED % server)
    page = visit()
    made["app.js"] = Response(bundle(tmp_path, "main.jsx"), media_type="text/javascript")
    expect(page.get_by_role("button", name="Open chat")).to_be_visible()
    page.evaluate("import('/made/app.js').then(() => hydrate())")
    settled(page)
    assert page.evaluate("recovered") == []
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    expect(page.locator("skill-chat")).to_have_count(1)
