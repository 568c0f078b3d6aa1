"""What people expect of a chat: drafts, undo, editing, suggestions, limits, copies, and a person in the end."""

import json
import math
from pathlib import Path

from playwright.sync_api import Route, expect

from tests.browser.conftest import Visitor
from tests.browser.support.stub import Stub
from tests.browser.widget.test_widget import answer, ask, listen, open_chat
from tests.support.harness import until

PHONE = {"width": 390, "height": 700}


def test_a_question_shows_at_once_while_the_session_begins(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.held.add("session")
    page = open_page(host)
    open_chat(page)
    ask(page, "Are you there?")
    expect(page.locator(".question")).to_have_text("You saidAre you there?")
    stub.held.clear()
    expect(answer(page)).to_have_text("Hello world.")
    expect(page.locator(".question")).to_have_count(1)
    assert page.locator(".turns > *").first.get_attribute("class") == "answer", "the greeting comes first"


def test_a_draft_outlives_the_page_and_ends_when_it_is_sent(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    field = page.get_by_role("textbox", name="Your message")
    field.fill("Half a thou")
    until(lambda: "Half a thou" in page.evaluate("JSON.stringify(sessionStorage)"))
    page.reload()
    expect(field).to_have_value("Half a thou")
    field.press("Enter")
    expect(answer(page)).to_have_text("Hello world.")
    assert "Half" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_the_limit_is_told_before_it_is_reached(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    expect(page.locator(".answer")).to_have_count(1)
    field = page.get_by_role("textbox", name="Your message")
    field.fill("x")
    expect(page.locator(".limit")).to_have_count(0)
    field.fill("x" * 8000)
    expect(page.locator(".limit")).to_have_text("192 characters left")
    field.fill("\u65e5" * 3000)  # three bytes each
    expect(page.locator(".limit")).to_have_text("270 characters too many")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    field.fill("x" * 8192)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_a_new_chat_can_be_undone_until_the_next_question(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Before")
    expect(page.locator(".actions")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".question")).to_have_count(0)
    assert "secret" not in page.evaluate("JSON.stringify(sessionStorage)")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".question")).to_have_text("You saidBefore")
    until(lambda: "secret" in page.evaluate("JSON.stringify(sessionStorage)"))
    assert stub.resets == 0
    page.get_by_role("button", name="New chat").click()
    ask(page, "After")
    expect(page.locator(".question")).to_have_text(["You saidAfter"])
    expect(page.locator(".actions")).to_be_visible()
    assert (stub.resets, stub.tokens_of_questions) == (1, ["token-1", "token-2"])


def test_a_question_asked_while_a_new_chat_still_loads_belongs_to_it(open_page: Visitor, host: str, stub: Stub) -> None:
    held: list[Route] = []
    page = open_page(host)
    page.route("**/chunk-undo-*", lambda route: held.append(route))
    open_chat(page)
    ask(page, "Before")
    expect(page.locator(".actions")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    ask(page, "After")
    until(lambda: page.evaluate("1") and bool(held))
    held[0].continue_()
    expect(page.locator(".question")).to_have_text(["You saidAfter"])
    expect(page.locator(".actions")).to_be_visible()
    assert stub.resets == 1


def test_the_last_question_can_be_edited(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "When do I prune roces?")
    page.get_by_role("button", name="Edit question").click()
    field = page.get_by_role("textbox", name="Your message")
    expect(field).to_have_value("When do I prune roces?")
    expect(field).to_be_focused()
    stub.pieces = ("In March.",)
    ask(page, "When do I prune roses?")
    expect(answer(page)).to_have_text("In March.")
    expect(page.locator(".question")).to_have_text(["You saidWhen do I prune roses?"])
    assert [asked.get("replace") for asked in stub.asked] == [None, "rep_1"]


def test_suggestions_follow_an_answer_unless_they_were_asked(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill["follow_ups"] = ["And in autumn?", "Which tool?"]
    page = open_page(host)
    open_chat(page)
    ask(page, "When?")
    expect(page.locator(".starter")).to_have_text(["And in autumn?", "Which tool?"])
    page.get_by_role("button", name="Which tool?").click()
    expect(page.locator(".starter")).to_have_text(["And in autumn?"])
    assert stub.asked[-1]["text"] == "Which tool?"


def test_a_small_screen_is_closed_by_back_and_the_page_behind_does_not_scroll(
    open_page: Visitor, host: str, stub: Stub
) -> None:
    page = open_page(host, viewport=PHONE)
    page.get_by_role("button", name="Open chat").click()
    panel = page.get_by_role("dialog")
    expect(panel).to_have_attribute("aria-modal", "true")
    overflow = "getComputedStyle(document.documentElement).overflowY"
    assert page.evaluate(overflow) == "hidden"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")  # in Chromium the same close request as Android's Back
    expect(panel).to_be_hidden()
    assert page.evaluate(overflow) != "hidden"


def test_reasons_after_a_bad_answer(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    page.get_by_role("button", name="Good answer").click()
    expect(page.get_by_role("group", name="What was wrong?")).to_have_count(0)
    page.get_by_role("button", name="Bad answer").click()
    chip = page.get_by_role("button", name="Not correct")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Send feedback").click()
    expect(page.get_by_text("Thank you for your feedback.").first).to_be_visible()
    assert stub.ratings[-1] == {"reply": "rep_1", "rating": "down", "comment": "", "reasons": ["wrong"]}


def test_a_person_is_sent_what_the_visitor_saw(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill["handover"] = {"kind": "webhook", "address": ""}
    page = open_page(host)
    open_chat(page)
    ask(page, "Are you open?")
    page.get_by_role("button", name="Talk to a person").click()
    seen = page.get_by_role("textbox", name="What is sent").input_value()
    assert "You said:\nAre you open?\n\nAI assistant said:\nHello world." in seen
    assert stub.handed_over == []
    page.get_by_role("textbox", name="How can we reach you?").fill("+49 1")
    page.get_by_role("button", name="Send to a person").click()
    expect(page.locator(".person .hint")).to_have_text("Sent. A person will read it.")
    assert stub.handed_over == [{"note": "", "contact": "+49 1"}]


def test_a_mail_holds_the_transcript_and_the_chat_can_be_downloaded(
    open_page: Visitor, host: str, stub: Stub, tmp_path: Path
) -> None:
    stub.skill["handover"] = {"kind": "mail", "address": "help@example.org"}
    page = open_page(host)
    open_chat(page)
    ask(page, "Are you open?")
    page.get_by_role("button", name="Talk to a person").click()
    href = page.get_by_role("link", name="Open in your mail program").get_attribute("href") or ""
    assert href.startswith("mailto:help@example.org?body=")
    assert "Are%20you%20open" in href
    with page.expect_download() as download:
        page.get_by_role("button", name="Download this chat").click()
    download.value.save_as(tmp_path / "chat.txt")
    assert "Hello world." in (tmp_path / "chat.txt").read_text()


def test_an_answer_is_copied_as_text_and_html(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces = ("**Yes**\n\n```py\nx = 1\n```",)
    page = open_page(host, permissions=["clipboard-read", "clipboard-write"])
    open_chat(page)
    ask(page, "Hello")
    expect(page.get_by_role("status")).to_contain_text("Answer complete.")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    read = """async () => {
        const [item] = await navigator.clipboard.read();
        const text = async type => (await item.getType(type)).text();
        return JSON.stringify([await text("text/plain"), await text("text/html")]);
    }"""
    plain, html = json.loads(page.evaluate(read))
    assert plain == stub.pieces[0]
    assert "<strong>Yes</strong>" in html
    assert "button" not in html


def test_boxes_are_tab_stops_only_while_they_scroll(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces = ("```\nshort\n```\n\n```py\n" + "long " * 60 + "\n```\n\n| a |\n|---|\n| b |",)
    page = open_page(host)
    open_chat(page)
    ask(page, "Code")
    boxes = page.locator(".answer").last.locator("pre, .table")
    expect(boxes.nth(1)).to_have_attribute("tabindex", "0")
    names = "all => all.map(e => [e.getAttribute('role'), e.getAttribute('aria-label'), e.tabIndex])"
    assert boxes.evaluate_all(names) == [[None, None, -1], ["region", "Code py", 0], [None, None, -1]]


def test_a_long_answer_is_announced_by_its_first_sentence(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces = ("Roses are pruned in March. " + "More follows here. " * 40,)
    page = open_page(host)
    open_chat(page)
    listen(page)
    ask(page, "When?")
    words = "Answer complete. Roses are pruned in March. The answer is long: read on in the conversation."
    until(lambda: page.evaluate("said").count(words) == 1)


def test_an_answer_appears_while_the_visitor_scrolls_through_many_turns(
    open_page: Visitor, host: str, stub: Stub
) -> None:
    stub.allowed = math.inf
    page = open_page(host)
    open_chat(page)
    for number in range(9):
        ask(page, f"Question {number}")
        expect(page.locator(".question")).to_have_count(number + 1)
        expect(page.locator(".actions")).to_have_count(number + 1)
    groups = page.locator(".log > .turns")
    expect(groups).to_have_count(2)
    assert groups.evaluate_all("all => all.map(e => getComputedStyle(e).contentVisibility)") == ["auto", "auto"]


def test_a_growing_answer_is_followed_unless_the_visitor_scrolls_up(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.pieces, stub.delay = tuple(f"Line {number} of a long answer.\n\n" for number in range(40)), 0.01
    page = open_page(host)
    open_chat(page)
    ask(page, "Go on")
    expect(page.locator(".actions")).to_have_count(1)
    log, back = page.locator(".log"), page.locator(".latest")
    below = "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    until(lambda: log.evaluate(below) < 2)
    expect(back).to_be_hidden()
    ask(page, "Go on")
    expect(answer(page)).to_contain_text("Line 20")
    log.hover()
    page.mouse.wheel(0, -300)
    expect(back).to_be_visible()
    expect(page.locator(".actions")).to_have_count(2)
    assert log.evaluate(below) > 200
    back.click()
    until(lambda: log.evaluate(below) < 2)
