"""Where the chat is on a page and how it looks: options, dialogs of the page, a second chat, a returning visitor."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.support.hosts import document
from tests.browser.support.stub import Stub
from tests.browser.widget.test_examples import Made, page_of
from tests.browser.widget.test_widget import answer, ask, open_chat

PHONE = {"viewport": {"width": 390, "height": 700}}
Visit = Callable[..., Page]


@pytest.fixture
def visit(open_page: Visitor, host: str, server: str, made: Made, stub: Stub) -> Visit:
    """Opens a page whose script line has these attributes, with a head and a body of its own."""

    def opened(attributes: str = "", head: str = "", body: str = "<main><h1>Host</h1></main>", **options: Any) -> Page:
        line = f'<script async src="{server}/widget.js" data-skill="help" {attributes}></script>'
        page: Page = open_page(host + page_of(made, document(head + line, body), ""), **options)
        return page

    return opened


def test_a_launcher_leaves_room_and_says_what_the_page_wants(visit: Visit) -> None:
    page = visit('data-offset-y="90px" data-offset-x="30px" data-label="Ask us" data-accent="#ffd400"')
    launcher = page.get_by_role("button", name="Ask us")
    expect(launcher).to_be_visible()
    box = launcher.bounding_box()
    assert box is not None
    assert (1280 - box["x"] - box["width"], 720 - box["y"] - box["height"]) == (30, 90)
    style = (
        "e => [getComputedStyle(e, '::after').content, getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    )
    content, fill, ink = launcher.evaluate(style)
    assert (content, fill) == ('"Ask us"', "rgb(255, 212, 0)")
    assert ink.startswith("color(xyz-d65 -"), "black"
    launcher.click()
    panel = page.get_by_role("dialog").bounding_box()
    assert panel is not None
    assert (1280 - panel["x"] - panel["width"], 720 - panel["y"] - panel["height"]) == (30, 90)
    send = page.locator(".send").evaluate("e => getComputedStyle(e).backgroundColor")
    assert send == "rgb(255, 212, 0)", "the brand's colour as it is"


def test_a_page_opens_the_chat_from_its_own_button(visit: Visit) -> None:
    page = visit('data-launcher="none"', body="<button onclick=\"SkillChat('open')\">Help</button>")
    expect(page.locator(".launcher")).to_be_hidden()
    page.get_by_role("button", name="Help").click()
    expect(page.get_by_role("dialog", name="Garden help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Help")).to_be_focused()


def test_custom_properties_shape_the_panel(visit: Visit) -> None:
    css = "skill-chat { --skill-chat-width: 500px; --skill-chat-height: 400px; --skill-chat-radius: 3px }"
    page = visit(head=f"<style>{css} skill-chat::part(title) {{ color: rgb(1, 2, 3) }}</style>")
    open_chat(page)
    panel = page.get_by_role("dialog")
    box = panel.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (500, 400)
    assert panel.evaluate("e => getComputedStyle(e).borderRadius") == "3px"
    assert page.locator("h2").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"


def test_the_header_takes_the_pages_colour_logo_and_avatar(visit: Visit) -> None:
    dot = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    page = visit(f'data-header="#123456" data-logo="{dot}" data-avatar="{dot}"')
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    head = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e.querySelector('h2')).color]"
    fill, ink = page.locator(".head").evaluate(head)
    assert fill == "rgb(18, 52, 86)"
    assert ink.startswith("color(xyz-d65 1"), "white"
    expect(page.locator(".head .logo")).to_have_attribute("src", dot)
    expect(page.locator(".answer .avatar")).to_have_count(2)


def test_a_modal_dialog_of_the_page_is_above_the_launcher_and_below_an_open_panel(visit: Visit) -> None:
    body = "<dialog style='width: 100vw; height: 100vh'><p>Mine</p></dialog>"
    page = visit(body=body)
    expect(page.get_by_role("button", name="Open chat")).to_be_visible()
    page.evaluate("document.querySelector('dialog').showModal()")
    assert page.evaluate("document.elementFromPoint(1232, 672).localName") == "dialog"
    page.evaluate("document.querySelector('dialog').close()")
    assert page.evaluate("document.elementFromPoint(1232, 672).localName") == "skill-chat"


def test_two_floating_chats_stand_beside_each_other_and_one_is_open(visit: Visit) -> None:
    page = visit()
    page.evaluate("SkillChat('init', { skill: 'other' })")
    first, second = page.locator("html > skill-chat").nth(0), page.locator("html > skill-chat").nth(1)
    expect(second.locator(".launcher")).to_have_css("right", "88px")
    expect(first.locator(".launcher")).to_have_css("right", "20px")
    second.locator(".launcher").click()
    expect(second.locator(".panel")).to_be_visible()
    page.evaluate("document.querySelector('html > skill-chat').call('open')")
    expect(first.locator(".panel")).to_be_visible()
    expect(second.locator(".panel")).to_be_hidden()


@pytest.mark.parametrize(("css", "paper"), [("dark", "rgb(22, 26, 24)"), ("light", "rgb(255, 255, 255)")])
def test_the_panel_follows_the_pages_colour_scheme(visit: Visit, css: str, paper: str) -> None:
    other = "light" if css == "dark" else "dark"
    page = visit(head=f"<style>:root {{ color-scheme: {css} }}</style>", color_scheme=other)
    open_chat(page)
    expect(page.get_by_role("dialog")).to_have_css("background-color", paper)
    page.evaluate("scheme => document.documentElement.style.colorScheme = scheme", other)
    expect(page.get_by_role("dialog")).not_to_have_css("background-color", paper)


def test_the_next_page_opens_the_panel_again_or_marks_the_conversation(visit: Visit, stub: Stub) -> None:
    page = visit()
    open_chat(page)
    ask(page, "Hello")
    expect(page.locator(".actions")).to_be_visible()
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.activeElement === document.body")
    page.get_by_role("button", name="Close chat").click()
    page.reload()
    launcher = page.get_by_role("button", name="Open chat")
    expect(launcher).to_have_attribute("aria-description", "Your conversation goes on here.")
    page.set_viewport_size({"width": 390, "height": 700})
    page.evaluate("SkillChat('open')")
    page.reload()
    expect(launcher).to_have_attribute("aria-description", "Your conversation goes on here.")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_open_opens_once_a_visitor_and_never_on_a_phone(visit: Visit) -> None:
    page = visit("data-open")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Close chat").click()
    page.reload()
    expect(page.get_by_role("button", name="Open chat")).to_be_visible()
    page.wait_for_load_state("networkidle")
    expect(page.get_by_role("dialog")).to_be_hidden()
    small = visit("data-open", **PHONE)
    small.wait_for_load_state("networkidle")
    expect(small.get_by_role("button", name="Open chat")).to_be_visible()


def test_a_teaser_is_shown_once_and_opens_the_chat(visit: Visit) -> None:
    options = 'data-teaser="Looking for roses?" data-teaser-after="0.1"'
    page = visit(options)
    teaser = page.get_by_role("region", name="Looking for roses?")
    expect(teaser).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0, "the visitor has done nothing yet"
    teaser.get_by_role("button", name="Close this note").click()
    expect(teaser).to_have_count(0)
    page.reload()
    page.wait_for_load_state("networkidle")
    expect(teaser).to_have_count(0)
    other = visit(options)
    other.get_by_role("button", name="Looking for roses?").click()
    expect(other.get_by_role("dialog")).to_be_visible()
    small = visit(options, **PHONE)
    small.wait_for_load_state("networkidle")
    expect(small.get_by_role("region", name="Looking for roses?")).to_have_count(0)


def test_an_inline_chat_shows_its_greeting_before_its_first_use(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill["starters"] = ["How?"]
    page = open_page(f"{host}/inline")
    expect(page.get_by_role("region", name="Garden help")).to_be_visible()
    expect(page.get_by_text("Ask me anything.")).to_be_visible()
    expect(page.get_by_role("button", name="How?")).to_be_visible()
    assert page.evaluate("[document.activeElement === document.body, sessionStorage.length]") == [True, 0]
