"""The sources below an answer: numbered links, and for each that has one its passage, to be opened."""

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from server.chat.grounded import refusal
from server.knowledge.passages import Passage
from tests.browser.conftest import Visitor
from tests.browser.support.hosts import document
from tests.browser.support.states import PASSAGE, SOURCES
from tests.browser.support.stub import Stub
from tests.browser.widget.test_examples import Made, page_of
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.support.harness import HELP

TWO = SOURCES[:2]
TITLE = SOURCES[0]["title"]
NAMES = {
    "en": "Passage",
    "de": "Textstelle",
    "fr": "Passage",
    "es": "Pasaje",
    "it": "Passo",
    "ja": "引用箇所",
    "nl": "Passage",
    "pl": "Fragment",
    "pt": "Excerto",
    "ar": "المقتطف",
}
# Where the letters of the marked node's text begin, from its first line to its last.
LEFTS = """node => [...node.textContent].map((_, at) => {
    const range = document.createRange();
    range.setStart(node.firstChild, at);
    range.setEnd(node.firstChild, at + 1);
    return range.getBoundingClientRect().left;
})"""
REVERSED = "\u202eabcdef"


def cite(page: Page, stub: Stub, *citations: dict[str, str]) -> Locator:
    """Get an answer that cites these; its list of sources."""
    stub.citations = list(citations)
    if "/inline" not in page.url:
        page.locator(".launcher").click()
    page.locator(".composer textarea").fill("When?")
    page.keyboard.press("Enter")
    expect(page.locator(".actions")).to_have_count(1)
    return page.locator(".sources ol")


def accessible(page: Page) -> list[tuple[str, str]]:
    """The sources as Chromium shows them to assistive technology: roles and names."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("name") and not node["ignored"]
    ]
    roles = {"list", "ListMarker", "link", "DisclosureTriangle"}
    found = [(role, name) for role, name in named if role in roles and (role != "list" or name)]
    return found[found.index(("list", "Sources")) :]  # without the page's own


def test_a_source_has_its_number_title_link_and_passage(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    cite(page, stub, *TWO)
    assert accessible(page) == [
        ("list", "Sources"),
        ("ListMarker", "1. "),
        ("link", TITLE),
        ("ListMarker", "2. "),
        ("link", SOURCES[1]["title"]),
        ("DisclosureTriangle", f"Passage: {TITLE}"),
    ]
    assert page.locator(".sources a").evaluate_all("all => all.map(one => one.href)") == [one["url"] for one in TWO]
    quote = page.locator(".sources blockquote")
    expect(quote).to_be_hidden()
    page.locator("summary").click()
    expect(quote).to_be_in_viewport(ratio=1)
    assert quote.evaluate("node => node.textContent") == PASSAGE
    assert quote.evaluate("node => node.childNodes.length") == 1
    assert quote.evaluate("node => node.clientHeight < 200 && node.clientHeight < node.scrollHeight")


def test_a_passage_opens_scrolls_and_closes_by_keyboard(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host, viewport={"width": 320, "height": 640})
    cite(page, stub, *TWO)
    page.locator(".sources a").first.focus()
    page.keyboard.press("Tab")
    expect(page.locator("summary")).to_be_focused()
    assert page.locator("summary").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    quote = page.locator(".sources blockquote")
    expect(quote).to_be_visible()
    page.keyboard.press("Tab")
    expect(quote).to_be_focused()
    assert quote.get_attribute("aria-label") == f"Passage: {TITLE}"
    page.keyboard.press("End")
    expect(quote).to_have_js_property("scrollTop", quote.evaluate("node => node.scrollHeight - node.clientHeight"))
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(quote).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.locator(".sources a").last).to_be_focused()  # what is closed takes no focus


@pytest.mark.parametrize("width", [320, 1280])
def test_targets_are_24_pixels_high_and_nothing_is_wider_than_the_log(
    open_page: Visitor, host: str, stub: Stub, width: int
) -> None:
    page = open_page(host, viewport={"width": width, "height": 640})
    long = {**SOURCES[0], "title": "A title of many words, which takes more than one line " * 3, "passage": "x" * 3000}
    cite(page, stub, long, SOURCES[1])
    page.locator("summary").click()
    sizes = page.locator(".sources :is(a, summary)").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(({ width, height }) => Math.min(width, height))"
    )
    assert len(sizes) == 3
    assert min(sizes) >= 24
    assert page.locator(".log").evaluate("log => log.scrollWidth <= log.clientWidth")


@pytest.mark.parametrize("code", NAMES)
def test_every_language_names_the_passage(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made, code: str
) -> None:
    html = document(f'<script async src="{server}/widget.js" data-skill="help" data-lang="{code}"></script>')
    page = open_page(host + page_of(made, html, ""))
    cite(page, stub, *TWO)
    assert page.locator("summary").get_attribute("aria-label") == f"{NAMES[code]}: {TITLE}"
    expect(page.locator("summary")).to_have_text(NAMES[code])


def test_directions_of_titles_and_passages_end_with_them(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    source = {"title": REVERSED, "url": "https://example.org/", "passage": f"{REVERSED}\nabcdef"}
    cite(page, stub, source, {**SOURCES[1], "title": "abcdef"})
    page.locator("summary").first.click()
    first, second = (page.locator(".sources a").nth(number).evaluate(LEFTS) for number in range(2))
    assert first[1:] == sorted(first[1:], reverse=True), "the override reverses its own title"
    assert second == sorted(second)
    lines: list[Any] = page.locator(".sources blockquote").first.evaluate(LEFTS)
    assert lines[1:7] == sorted(lines[1:7], reverse=True)
    assert lines[8:] == sorted(lines[8:]), "the line after it is not reversed"
    label = page.locator("summary").first
    left = label.evaluate(LEFTS)
    assert left == sorted(left)


def test_an_open_passage_is_printed_whole(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/inline")
    cite(page, stub, {**SOURCES[0], "passage": PASSAGE * 5})
    page.locator("summary").click()
    whole = "node => node.clientHeight === node.scrollHeight"
    assert not page.locator(".sources blockquote").evaluate(whole)
    page.emulate_media(media="print")
    assert page.locator(".sources blockquote").evaluate(whole)


def test_a_conversation_that_is_restored_has_its_passages(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    cite(page, stub, *TWO)
    stub.turns = [
        {
            "question": "When?",
            "reply": {"id": "rep_1", "text": "Now.", "finish": "stop", "next": 3, "citations": TWO, "rating": None},
        }
    ]
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()  # it was open
    page.locator("summary").click()
    expect(page.locator(".sources blockquote")).to_have_text(PASSAGE)


def test_the_nearest_pages_of_a_refusal_are_links(open_page: Visitor, host: str, stub: Stub) -> None:
    nearest = [
        Passage("Text.", "Prices", "http://127.0.0.1:8001/docs/prices/#a_(b)"),
        Passage("Text.", "Roses * [x](y)", "https://example.org/a%20b?c=d&e", ("Late <winter>",)),
    ]
    stub.pieces = [*refusal(HELP, nearest)]
    page = open_page(host)
    open_chat(page)
    ask(page, "What is the weather?")
    expect(page.locator(".actions")).to_have_count(1)
    links = answer(page).locator("li a").evaluate_all("all => all.map(one => [one.textContent, one.href])")
    assert links == [["Prices", nearest[0].url], ["Late  winter", nearest[1].url]]
    assert "<" not in answer(page).inner_text()
