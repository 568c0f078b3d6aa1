"""Unusual moments for a visitor: closed panels, slow servers, refused texts, failed ratings."""

import math

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.support.stub import Stub
from tests.browser.widget.test_widget import answer, ask, listen, open_chat
from tests.conftest import ROOT
from tests.support.harness import until


def test_lists_tables_and_code_are_read_out_with_their_parts_apart(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces = ("Two:\n\n- one\n- two\n\n| a | b |\n|---|---|\n| c | d |\n\n```py\nx = 1\n```",)
    page = open_page(host)
    open_chat(page)
    listen(page)
    ask(page, "Which?")
    expect(page.locator(".actions")).to_be_visible()
    until(lambda: len(page.evaluate("said")) == 2)
    writing, complete = page.evaluate("said")
    assert writing == "The assistant is writing."
    assert complete.split() == ["Answer", "complete.", "Two:", "one", "two", "a", "b", "c", "d", "x", "=", "1"]


def test_closing_by_script_leaves_the_focus_where_the_visitor_is(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    starter = page.get_by_role("button", name="What does it cost?")
    page.evaluate("SkillChat('open', false)")
    expect(page.get_by_role("dialog")).to_be_visible()
    starter.focus()
    page.evaluate("SkillChat('close')")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(starter).to_be_focused()
    starter.evaluate("e => { e.focus(); SkillChat('open') }")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(starter).to_be_focused()


def test_listeners_registered_before_the_chat_hear_ready(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    page.evaluate("""() => {
        window.told = [];
        for (const name of ["ready", "open"]) SkillChat("on", name, e => told.push(name));
        SkillChat("open");
    }""")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("told") == ["ready", "open"]


def test_an_answer_during_a_closed_panel_shows_on_the_launcher(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.allowed = 1
    page = open_page(host)
    open_chat(page)
    ask(page, "Slowly?")
    page.keyboard.press("Escape")
    stub.allowed = math.inf
    launcher = page.get_by_role("button", name="Open chat")
    expect(launcher).to_have_attribute("aria-description", "Answer complete.")
    assert launcher.evaluate("e => getComputedStyle(e, '::after').borderTopWidth") == "7px"
    launcher.click()
    expect(answer(page)).to_have_text("Hello world.")
    page.keyboard.press("Escape")
    expect(launcher).not_to_have_attribute("aria-description", "Answer complete.")


def test_a_refused_question_returns_to_the_field(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    stub.status, stub.error = 400, {"message": "Too long."}
    ask(page, "Much too long")
    expect(page.locator(".trouble-line span")).to_have_text("The assistant could not take this message. Too long.")
    stub.status = 200
    page.get_by_role("button", name="Try again").click()
    field = page.get_by_role("textbox", name="Your message")
    expect(field).to_have_value("Much too long")
    expect(field).to_be_focused()
    expect(page.locator(".question")).to_have_count(0)
    ask(page, "Shorter")
    expect(answer(page)).to_have_text("Hello world.")
    assert [asked["text"] for asked in stub.asked] == ["Much too long", "Shorter"]


def test_a_failed_rating_is_not_shown_as_given(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    stub.rating_status = 500
    page.get_by_role("button", name="Good answer").click()
    expect(page.locator(".hint")).to_have_text("Your feedback could not be stored.")
    expect(page.get_by_role("button", name="Good answer", pressed=False)).to_be_visible()
    stub.rating_status = 200
    page.get_by_role("button", name="Good answer").click()
    field = page.get_by_role("textbox", name="What should we know?")
    stub.rating_status = 500
    field.fill("日" * 400)
    assert len(field.input_value().encode()) <= 1000, "what the server takes"
    page.get_by_role("button", name="Send feedback").click()
    expect(page.get_by_text("Your feedback could not be stored.").first).to_be_visible()
    stub.rating_status = 200
    page.get_by_role("button", name="Send feedback").click()
    expect(page.locator(".hint")).to_have_text("Thank you for your feedback.")
    assert stub.ratings[-1]["comment"] == "日" * 333


def test_a_slow_server_shows_a_waiting_sign(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.held.add("session")
    page = open_page(host)
    open_chat(page)
    dots = "e => getComputedStyle(e, '::before').content"
    assert page.get_by_role("log").evaluate(dots) == '"•••" / ""'  # which is not read out
    stub.held.clear()
    expect(page.locator(".answer")).to_have_count(1)
    assert page.get_by_role("log").evaluate(dots) == "none"


def forgotten_between(open_page: Visitor, host: str, stub: Stub) -> Page:
    """Two questions, between which the server forgot the conversation, as after another tab's reset or a long pause."""
    page = open_page(host)
    open_chat(page)
    ask(page, "Before")
    expect(page.locator(".actions")).to_have_count(1)
    stub.forgotten = True
    stub.tokens.clear()
    ask(page, "After")
    expect(page.locator(".actions")).to_have_count(2)
    return page


def test_what_follows_a_forgotten_conversation_survives_a_reload(open_page: Visitor, host: str, stub: Stub) -> None:
    """The server begins a new conversation on the old one's page."""
    page = forgotten_between(open_page, host, stub)
    assert page.evaluate("sessionStorage.length") == 1


def test_a_mail_opens_no_page(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces = ("[Write](mailto:a@example.org), [call](tel:+123) or [read](https://example.org).",)
    page = open_page(host)
    open_chat(page)
    ask(page, "How?")
    expect(page.locator(".actions")).to_be_visible()
    targets = page.locator(".answer a").evaluate_all("all => all.map(a => a.target)")
    assert targets == ["_self", "_self", "_blank"]


@pytest.fixture
def heap(open_page: Visitor, host: str) -> Page:
    """A page and a session that reads its heap."""
    page = open_page(f"{host}/elements")
    expect(page.get_by_role("region", name="Second")).to_be_visible()
    return page


def test_fifty_mounts_leave_no_node_and_no_listener_in_memory(heap: Page, stub: Stub) -> None:
    session = heap.context.new_cdp_session(heap)
    session.send("Performance.enable")
    mount = (ROOT / "tests/browser/support/mount.js").read_text()

    def held() -> dict[str, float]:
        session.send("HeapProfiler.collectGarbage")
        metrics = session.send("Performance.getMetrics")["metrics"]
        return {metric["name"]: metric["value"] for metric in metrics}

    heap.evaluate(mount, 5)
    heap.wait_for_load_state("networkidle")  # a pending session request holds its caller
    before = held()
    heap.evaluate(mount, 50)
    for name in ("Nodes", "JSEventListeners"):
        until(lambda: held()[name] - before[name] < 50)  # noqa: B023 - fewer than one for each mount
