"""The widget in Debian's Chromium, embedded from another origin under a strict policy."""

import re
from unittest.mock import ANY
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Visitor, settled
from tests.browser.support.stub import Stub
from tests.support.harness import until


def open_chat(page: Page) -> None:
    page.get_by_role("button", name="Open chat").click()
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(question)
    page.keyboard.press("Enter")


def answer(page: Page) -> Locator:
    return page.locator(".answer .text").last


def listen(page: Page) -> None:
    """Record the polite status's messages and each text of the latest answer."""
    page.evaluate("""() => {
        window.said = [];
        window.shown = [];
        const root = document.querySelector("html > skill-chat").shadowRoot;
        const status = root.querySelector("[role=status]");
        const heard = { childList: true, characterData: true, subtree: true };
        new MutationObserver(() => said.push(status.textContent)).observe(status, heard);
        new MutationObserver(() => {
            const text = [...root.querySelectorAll(".answer .text")].at(-1).textContent;
            if (shown.at(-1)?.trim() !== text.trim()) shown.push(text);
        }).observe(root.querySelector("[role=log]"), heard);
    }""")


def test_an_answer_streams_and_is_announced_once_at_either_end(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces, stub.allowed = ("Roses ", "in *late* ", "winter."), 2  # the start and the first piece
    page = open_page(host)
    open_chat(page)
    expect(page.get_by_role("dialog", name="Garden help")).to_be_visible()
    expect(page.get_by_text("AI assistant", exact=True)).to_be_visible()
    expect(page.locator(".answer").first).to_have_text("AI assistant saidAsk me anything.")
    listen(page)
    ask(page, "When do I prune roses?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    for text in ("Roses", "Roses in late", "Roses in late winter."):
        expect(answer(page)).to_have_text(text)
        stub.allowed += 1
    expect(answer(page).locator("em")).to_have_text("late")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    until(lambda: page.evaluate("said") == ["The assistant is writing.", "Answer complete. Roses in late winter."])
    assert [text.strip() for text in page.evaluate("shown") if text] == [
        "Roses",
        "Roses in late",
        "Roses in late winter.",
    ]
    assert page.get_by_role("log").get_attribute("aria-live") == "off"


def test_a_late_greeting_still_comes_first(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.held.add("session")
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    stub.held.clear()
    expect(answer(page)).to_have_text("Hello world.")
    expect(page.locator(".answer .text")).to_have_text(["Ask me anything.", "Hello world."])


def test_only_the_new_question_is_sent(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    page.evaluate("Array.prototype.toJSON = String.prototype.toJSON = () => 'broken'")
    page.evaluate("for (const name of ['title', 'error', 'body', 'key', 'resume', 'x']) Object.prototype[name] = 'bad'")
    open_chat(page)
    expect(page.get_by_role("dialog", name="Garden help")).to_be_visible()
    page.evaluate("SkillChat('setContext', 'Page: Pricing')")
    for number in range(2):
        ask(page, f'question "{number}"')
        expect(page.locator(".answer .text strong")).to_have_count(number + 2)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert stub.sessions == [{"skill": "help"}]
    assert [sent.pop("message") for sent in stub.asked] == [ANY, ANY]
    assert stub.asked == [{"text": f'question "{n}"', "context": "Page: Pricing"} for n in range(2)]


def test_stop_ends_the_answer_and_keeps_the_text(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces, stub.hold = ("Half an",), True
    page = open_page(host)
    open_chat(page)
    ask(page, "Go on")
    expect(answer(page)).to_have_text("Half an")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer").last).to_contain_text("Stopped.")
    expect(answer(page)).to_have_text("Half an")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    assert stub.stopped == ["rep_1"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "This page is not allowed to use this assistant."),
        (403, "This page is not allowed to use this assistant."),
        (404, "This assistant does not exist any more."),
        (500, "Something went wrong on our side."),
    ],
)
def test_errors_are_sentences_and_can_be_retried(
    open_page: Visitor, host: str, stub: Stub, status: int, words: str
) -> None:
    page = open_page(host)
    open_chat(page)
    listen(page)
    stub.status = status
    ask(page, "Hello?")
    expect(page.locator(".trouble-line span")).to_have_text(words)
    stub.status = 200
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_have_text("Hello world.")
    expect(page.locator(".trouble-line")).to_have_count(0)
    expect(page.locator(".question")).to_have_count(1)
    assert stub.asked[-1]["text"] == "Hello?"
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    writing = "The assistant is writing."
    until(lambda: page.evaluate("said") == [writing, words, writing, "Answer complete. Hello world."])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_has_a_countdown(open_page: Visitor, host: str, stub: Stub, status: int) -> None:
    page = open_page(host)
    open_chat(page)
    stub.status, stub.headers = status, {"Retry-After": "2"}
    ask(page, "Hello?")
    expect(page.locator(".trouble-line span")).to_have_text("The assistant is busy. You can try again in 2 s.")
    expect(page.get_by_role("button", name="Try again")).to_be_disabled()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(page.locator(".trouble-line span")).to_have_text("The assistant is busy. You can try again in 1 s.")
    stub.status = 200
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_have_text("Hello world.")


def test_a_broken_stream_is_resumed(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces, stub.cuts, stub.delay = ("Only the", " first"), 2, 0.05
    page = open_page(host)
    open_chat(page)
    listen(page)
    ask(page, "All of it?")
    expect(page.locator(".actions")).to_be_visible()
    expect(answer(page)).to_have_text("Only the first")
    assert len(stub.resumed) == 2
    assert {*stub.resumed} <= {"rep_1?from=2", "rep_1?from=3"}  # the last event may be lost with its connection
    until(lambda: page.evaluate("said") == ["The assistant is writing.", "Answer complete. Only the first"])


def test_a_reply_that_cannot_be_resumed_keeps_its_text(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces, stub.cuts, stub.lost, stub.delay = ("Only the", " first"), 1, True, 0.05
    page = open_page(host)
    open_chat(page)
    ask(page, "All of it?")
    expect(page.locator(".trouble-line span")).to_have_text("The connection was lost. This answer is incomplete.")
    expect(answer(page)).to_have_text("Only the first")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".actions")).to_be_visible()
    expect(page.locator(".trouble-line")).to_have_count(0)
    assert len(stub.asked) == 2


def test_an_expired_session_is_renewed_once_for_all_requests(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    expect(page.locator(".answer")).to_have_count(1)
    stub.tokens.clear()
    ask(page, "Hello?")
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.sessions == [{"skill": "help"}, {"skill": "help", "resume": "secret"}]


def test_being_offline_is_said_once_and_nothing_can_be_sent(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    expect(page.locator(".answer")).to_have_count(1)
    page.context.set_offline(True)
    expect(page.locator(".notice")).to_have_text("You are offline.")
    ask(page, "Hello?")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(page.locator(".trouble-line")).to_have_count(0)  # said once, and the question stays in the field
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("Hello?")
    page.context.set_offline(False)
    page.get_by_role("button", name="Send").click()
    expect(answer(page)).to_have_text("Hello world.")


def test_a_refused_session_is_reported_at_once(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.session_status = 403
    page = open_page(host)
    open_chat(page)
    expect(page.locator(".trouble-line span")).to_have_text("This page is not allowed to use this assistant.")
    stub.session_status = 200
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("dialog", name="Garden help")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(1)


def test_only_the_script_is_fetched_before_the_visitor_opens_it(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/twice")
    expect(page.get_by_role("button", name="Open chat")).to_have_count(1)
    page.wait_for_load_state("networkidle")
    settled(page)
    assert {urlsplit(url).path for url in open_page.asked} == {"/twice", "/widget.js"}
    assert page.context.cookies() == []
    names = "Object.keys(window).filter(name => /skill|chat|secateur/i.test(name)).length"
    stores = f"[localStorage.length, sessionStorage.length, document.cookie, {names}]"
    assert page.evaluate(stores) == [0, 0, "", 1]
    open_chat(page)
    assert page.evaluate(stores) == [0, 1, "", 1], "that it is open, for the visitor's next page"
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    assert page.evaluate(stores) == [0, 1, "", 1]
    assert page.context.cookies() == []
    expect(page.locator(".actions")).to_be_visible()
    paths = [re.sub("-[0-9a-f]{8}[.]js", "", urlsplit(url).path) for url in open_page.asked]
    assert set(paths[2:]) == {f"/assets/{name}" for name in ("app", "app-en", "chunk-field", "chunk-turn")} | {
        "/v1/widget/session",
        "/v1/widget/messages",
    }


@pytest.mark.parametrize("path", ["/nonce", "/dynamic", "/late", "/hostile"])
def test_it_works_under_any_policy_and_any_stylesheet(open_page: Visitor, host: str, stub: Stub, path: str) -> None:
    page = open_page(host + path)
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    panel = page.get_by_role("dialog")
    box = panel.bounding_box()
    assert box == {"x": 1280 - 20 - 400, "y": 720 - 20 - 660, "width": 400, "height": 660}
    field = page.get_by_role("textbox", name="Your message")
    style = "e => { const s = getComputedStyle(e); return [parseFloat(s.fontSize) >= 16, s.color] }"
    assert field.evaluate(style) == [True, "rgb(24, 32, 28)"]
    page.get_by_role("button", name="Close chat").click()
    expect(page.get_by_role("button", name="Open chat")).to_be_focused()


def test_it_survives_a_page_that_replaces_its_body(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/nonce")
    open_chat(page)
    page.evaluate("document.body.replaceWith(document.createElement('body'))")
    ask(page, "Still there?")
    expect(answer(page)).to_have_text("Hello world.")


def test_the_keyboard_is_enough(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/nonce")
    page.evaluate("window.heard = []; addEventListener('keydown', e => heard.push(e.key))")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="Your message")
    expect(field).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert stub.asked == []
    page.keyboard.press("Enter")
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.asked[0]["text"] == "one\ntwo"
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Open chat")).to_be_focused()
    assert page.evaluate("heard") == ["Tab", "Enter"]


def test_an_app_that_fails_to_load_is_reported_and_retried(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    page.route("**/assets/app-*", lambda route: route.abort())
    page.get_by_role("button", name="Open chat").click()
    expect(page.locator("output")).to_have_text("Chat unavailable")
    page.unroute("**/assets/app-*")
    open_chat(page)
    expect(page.locator("output")).to_have_count(0)


def test_a_script_line_without_a_skill_explains_itself(open_page: Visitor, host: str) -> None:
    page = open_page("about:blank")
    with page.expect_console_message(lambda message: "data-skill" in message.text):
        page.goto(f"{host}/nameless")
    assert page.get_by_role("button", name="Open chat").count() == 0
