"""No text from a model, a skill or an error may become anything but text and harmless links."""

import json
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.stub import Stub
from tests.browser.test_widget import ask, open_chat

ATTACKS = json.loads((Path(__file__).parents[2] / "widget" / "test" / "attacks.json").read_text())
OURS = {"div", "h2", "p", "button", "svg", "path", "form", "textarea", "span", "i"}
TEXT = {"p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "pre", "code", "blockquote", "hr", "br", "strong", "em", "a"}
INSIDE = """selector => {
    const root = document.querySelector("html > skill-chat").shadowRoot;
    return [...root.querySelectorAll(selector)];
}"""


def elements(page: Page) -> set[str]:
    return set(page.evaluate(f"[...new Set(({INSIDE})('*').map(e => e.localName))]"))


def assert_harmless(page: Page, asked: list[str], origins: set[str]) -> None:
    assert elements(page) <= OURS | TEXT
    attributes = page.evaluate(f"({INSIDE})('*').flatMap(e => e.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcdoc", "action")]
    links = page.evaluate(f"({INSIDE})('a').map(a => [a.protocol, a.username, a.rel, a.target])")
    assert {tuple(link) for link in links} <= {("https:", "", "noopener noreferrer nofollow", "_blank")}
    assert {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in asked} == origins


def test_answers(open_page: Visitor, host: str, stub_server: tuple[Stub, str], stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    for number, attack in enumerate(ATTACKS):
        stub.pieces = list(attack)
        ask(page, attack)
        expect(page.locator(".answer")).to_have_count(number + 2)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert len(stub.asked) == len(ATTACKS) >= 40
    assert_harmless(page, open_page.asked, {host, stub_server[1]})
    assert "a" in elements(page), "the harmless links among them are links"


def test_titles_greetings_and_errors(open_page: Visitor, host: str, stub_server: tuple[Stub, str], stub: Stub) -> None:
    for attack in [*ATTACKS[:6], "\n\n".join(ATTACKS)]:
        stub.skill = {"title": attack, "greeting": attack}
        stub.status, stub.error = 400, attack
        page = open_page(host)
        open_chat(page)
        expect(page.locator(".panel h2")).to_have_text(attack)
        ask(page, attack)
        expect(page.locator(".trouble-line")).to_contain_text(attack)
        assert_harmless(page, open_page.asked, {host, stub_server[1]})


def test_a_skill_of_the_wrong_shape_is_shown_with_our_own_words(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill = {"title": {"a": 1}, "greeting": ["x"]}
    page = open_page(host)
    open_chat(page)
    expect(page.get_by_role("dialog", name="Chat")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)
