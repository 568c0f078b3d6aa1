"""The widget against the real server, on two origins, with a scripted runner."""

import sqlite3
from contextlib import closing

from playwright.sync_api import expect

from tests.browser.conftest import Start, Visitor
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.support.harness import until


def test_a_chat_streams_and_its_tokens_appear_on_the_page(open_page: Visitor, start: Start) -> None:
    origin, _ = start("Prune in **winter** 🌱.\n\n- a\n- b")
    page = open_page(origin)
    expect(page.locator("[data-total=output]")).to_have_text("0")
    open_chat(page)
    expect(page.get_by_role("dialog", name="Help desk")).to_be_visible()
    expect(page.locator(".answer .text")).to_have_text("Hello")
    for number in (1, 2):
        ask(page, "When?")
        expect(page.locator(".answer li")).to_have_count(2 * number)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(answer(page).locator("p").first).to_have_text("Prune in winter 🌱.")
        expect(page.locator("[data-total=requests]")).to_have_text(str(number))
        tokens = len("Prune in **winter** 🌱.\n\n- a\n- b".encode()) + 1
        expect(page.locator("[data-total=output]")).to_have_text(str(number * tokens))


def test_stop_frees_the_slot(open_page: Visitor, start: Start) -> None:
    origin, server = start("word " * 100, passes=3)
    page = open_page(origin)
    open_chat(page)
    ask(page, "Go on for ever")
    expect(answer(page)).to_contain_text("wo")
    assert server.engine.running == 1
    page.get_by_role("button", name="Stop").click()
    until(lambda: server.apps.replies.idle)
    server.runner.release()
    until(lambda: server.engine.running == 0)
    expect(page.locator(".answer").last).to_contain_text("Stopped.")


def test_a_full_queue_is_counted_down(start: Start, open_page: Visitor) -> None:
    origin, server = start("word " * 100, passes=1, slots=1, max_waiting=1)
    visitors = [open_page(origin) for _ in range(3)]
    for page in visitors:
        open_chat(page)
    for number, page in enumerate(visitors):
        ask(page, "Me too")
        if number < 2:
            until(lambda: server.engine.running + server.engine.waiting == number + 1)  # noqa: B023
    expect(visitors[2].locator(".trouble-line")).to_contain_text("The assistant is busy. You can try again in")


def test_a_reply_goes_on_through_a_reload_and_is_rated(open_page: Visitor, start: Start) -> None:
    text = "One two three four five six seven eight."
    origin, server = start(text, passes=5)
    page = open_page(origin)
    open_chat(page)
    ask(page, "Count")
    expect(answer(page)).to_contain_text("One")
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()  # it was open
    expect(page.locator(".question")).to_have_text("You said" + "Count")
    server.runner.release()
    expect(page.locator(".actions")).to_be_visible()
    expect(answer(page)).to_have_text(text)
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("textbox", name="What should we know?").fill("Ten was missing")
    page.get_by_role("button", name="Send feedback").click()
    file = server.parts.config.feedback_file
    given = "SELECT skill, rating, comment FROM feedback"

    def stored() -> list[tuple[str, str, str]]:
        with closing(sqlite3.connect(file)) as database:
            return database.execute(given).fetchall()

    until(lambda: stored() == [("help", "down", "Ten was missing")])
    metrics = page.request.get(f"{server.admin}/metrics").text()
    assert 'secateur_feedback_total{rating="down",skill="help"} 1.0' in metrics


def test_a_page_of_another_origin_gets_a_sentence(open_page: Visitor, start: Start) -> None:
    origin, _ = start("Hello", origins=("https://elsewhere.example",))
    page = open_page(origin)
    open_chat(page)
    expect(page.locator(".trouble-line span")).to_have_text("The assistant cannot be reached right now.")


def test_a_conversation_beyond_the_context_is_refused_with_what_to_do(open_page: Visitor, start: Start) -> None:
    origin, _ = start("Hello", context=128)
    page = open_page(origin)
    open_chat(page)
    ask(page, "x" * 200)
    words = "The question is too long for this assistant. Please shorten it."
    expect(page.locator(".trouble-line span")).to_have_text(words)
