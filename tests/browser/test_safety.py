"""No text from a model, a skill or an error may become anything but text and harmless links."""

import json
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.stub import Stub, turn
from tests.browser.test_widget import ask, open_chat

ATTACKS = json.loads((Path(__file__).parents[2] / "widget" / "test" / "attacks.json").read_text())
OURS = {"div", "h2", "p", "button", "svg", "path", "form", "textarea", "span", "i"}
TEXT = {
    "p",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "pre",
    "code",
    "blockquote",
    "hr",
    "br",
    "strong",
    "em",
    "a",
    "del",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
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
        stub.pieces = [attack[at : at + 3] for at in range(0, len(attack), 3)]
        ask(page, attack)
        expect(page.locator(".answer .actions")).to_have_count(number + 1)
    assert len(stub.asked) == len(ATTACKS) >= 60
    assert_harmless(page, open_page.asked, {host, stub_server[1]})
    assert "a" in elements(page), "the harmless links among them are links"


def test_every_other_text(open_page: Visitor, host: str, stub_server: tuple[Stub, str], stub: Stub) -> None:
    """Title, greeting, starters, citations, an earlier conversation, errors and the page's own options."""
    for attack in [*ATTACKS[:4], "\n\n".join(ATTACKS)]:
        stub.reset()
        stub.skill = {"title": attack, "greeting": attack, "starters": [attack], "image_origins": [attack]}
        stub.turns = [turn(attack, attack, citations=[{"title": attack, "url": attack}])]
        page = open_page(host)
        page.evaluate("text => sessionStorage.setItem(`skill-chat ${text}/ help`, 'secret')", stub_server[1])
        open_chat(page)
        expect(page.locator(".panel h2")).to_have_text(attack)
        expect(page.locator(".actions")).to_have_count(1)
        stub.citations = [{"title": attack, "url": "https://example.org/" + attack}, {"title": attack, "url": attack}]
        ask(page, attack)
        expect(page.locator(".actions")).to_have_count(2)
        stub.status, stub.error = 400, {"message": attack}
        ask(page, attack)
        expect(page.locator(".trouble-line")).to_contain_text(attack)
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".starter")).to_have_text(attack)
        assert_harmless(page, open_page.asked, {host, stub_server[1]})
    page.evaluate(
        "text => SkillChat('init', { skill: 'x', title: text, greeting: text, starters: [text], accent: text })"
        ".call('open')",
        "\n".join(ATTACKS),
    )
    expect(page.locator(".panel")).to_have_count(2)
    assert_harmless(page, open_page.asked, {host, stub_server[1]})


def test_a_skill_of_the_wrong_shape_is_shown_with_our_own_words(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill = {"title": {"a": 1}, "greeting": ["x"]}
    page = open_page(host)
    open_chat(page)
    expect(page.get_by_role("dialog", name="Chat")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)
