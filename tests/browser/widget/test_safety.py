"""Text of a model, a skill or an error renders as text and harmless links only."""

import json
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.support.stub import Stub, turn
from tests.browser.widget.test_widget import ask, open_chat
from tests.conftest import ROOT

ATTACKS = json.loads((ROOT / "widget" / "test" / "attacks.json").read_text())
OURS = {"article", "div", "h2", "p", "button", "svg", "path", "time", "form", "textarea", "span", "details", "summary"}
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
REORDERING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))  # left out
INSIDE = """selector => {
    const roots = [...document.querySelectorAll("skill-chat")].map(chat => chat.shadowRoot);
    return roots.flatMap(root => [...root.querySelectorAll(selector)]);
}"""


def elements(page: Page) -> set[str]:
    return set(page.evaluate(f"[...new Set(({INSIDE})('*').map(e => e.localName))]"))


def assert_harmless(page: Page, asked: list[str], origins: set[str]) -> None:
    assert elements(page) <= OURS | TEXT
    names = "e.getAttributeNames().filter(name => name !== 'style' || e.style.length)"  # an empty one was set back
    attributes = page.evaluate(f"({INSIDE})('*').flatMap(e => {names})")
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
    """Each attack alone: earlier conversation, citations, passages, title, greeting, starters, errors, options."""
    origins = {host, stub_server[1]}
    sources = [
        [{"title": text, "url": url, "passage": text} for url in (text, "https://example.org/" + text)]
        for text in ATTACKS
    ]
    stub.turns = [turn(text, text, citations=cited) for text, cited in zip(ATTACKS, sources, strict=True)]
    page = open_page(host)
    page.evaluate("text => sessionStorage.setItem(`skill-chat ${text}/ help`, 'secret')", stub_server[1])
    open_chat(page)
    expect(page.locator(".question")).to_have_count(len(ATTACKS))
    expect(page.locator(".actions")).to_have_count(len(ATTACKS))  # after the sources
    assert page.locator(".sources li").count() >= len(ATTACKS)
    quoted = page.locator(".sources blockquote").evaluate_all("quotes => quotes.map(quote => quote.textContent)")
    assert set(quoted) == set(ATTACKS), "passages are plain text"
    page.evaluate(f"({INSIDE})('details').forEach(one => one.open = true)")
    assert_harmless(page, open_page.asked, origins)
    for text in ATTACKS:
        stub.skill = {"title": text, "greeting": text, "starters": [text], "image_origins": [text]}
        page.evaluate("SkillChat('reset')")
        expect(page.locator(".starter")).to_have_text(text.translate(REORDERING))
        expect(page.locator(".panel h2")).to_have_text(text)
        assert_harmless(page, open_page.asked, origins)
    stub.status = 400
    for number, text in enumerate(ATTACKS):
        stub.error = {"message": text}
        ask(page, text)
        expect(page.locator(".trouble-line")).to_have_count(number + 1)
        assert text.split()[0] in page.locator(".trouble-line").last.inner_text()
    assert_harmless(page, open_page.asked, origins)
    page.evaluate(
        """texts => texts.forEach((text, number) => SkillChat("init", {
            skill: `x${number}`, title: text, greeting: text, starters: [text], accent: text, zIndex: text
        }).call("open"))""",
        ATTACKS,
    )
    expect(page.locator(".panel")).to_have_count(len(ATTACKS) + 1)
    assert_harmless(page, open_page.asked, origins)


def test_a_skill_of_the_wrong_shape_is_shown_with_our_own_words(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.skill = {"title": {"a": 1}, "greeting": ["x"]}
    page = open_page(host)
    open_chat(page)
    expect(page.get_by_role("dialog", name="Chat")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)
