"""axe finds nothing in any state of the panel or on the host page, in light and dark, wide and narrow."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.stub import Stub
from tests.browser.test_widget import ask, open_chat

AXE = Path(__file__).parents[2] / "widget" / "node_modules" / "axe-core" / "axe.min.js"
ANSWER = (
    "# Roses\n\nIn **winter**: `cut`, [guide](https://example.org).\n\n1. one\n2. two\n\n> so\n\n```\n"
    + "x" * 90
    + "\n```\n\n| a | b |\n|---|---|\n| c | d |"
)
SNIFFER = AXE.parents[1] / "html_codesniffer" / "build" / "HTMLCS.js"
# The checker does not look into shadow roots: what is in ours is put where it does.
FLAT = """() => {
    const { shadowRoot } = document.querySelector("html > skill-chat");
    const sheet = new CSSStyleSheet();
    const rules = [...shadowRoot.adoptedStyleSheets].flatMap(s => [...s.cssRules]).map(r => r.cssText).join("");
    sheet.replaceSync(rules.replace(/:host(\\([^{]*\\))?(?=[ {])/g, ":root"));
    document.adoptedStyleSheets = [sheet];
    document.body.replaceChildren(...[...shadowRoot.children].map(node => node.cloneNode(true)));
}"""


def violations(page: Page) -> list[Any]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: run `npm ci` in widget/")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_axe_finds_nothing(open_page: Visitor, host: str, stub: Stub, scheme: str, width: int) -> None:
    page = open_page(host, bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 640})
    assert violations(page) == []
    open_chat(page)
    stub.pieces = (ANSWER,)
    ask(page, "When?")
    expect(page.locator(".answer pre")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Good answer").click()
    assert violations(page) == []
    stub.hold, stub.pieces = True, ()
    ask(page, "And then?")
    expect(page.locator(".dots")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".dots")).to_have_count(0)
    stub.hold, stub.status, stub.headers = False, 429, {"Retry-After": "60"}
    ask(page, "And now?")
    expect(page.locator(".trouble-line")).to_be_visible()
    assert violations(page) == []


@pytest.mark.skipif(not SNIFFER.exists(), reason="html_codesniffer is not installed: run `npm ci` in widget/")
def test_the_checker_of_pa11y_finds_no_error(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host, bypass_csp=True)
    stub.skill["starters"] = ["Why?"]
    open_chat(page)
    expect(page.locator(".starter")).to_be_visible()
    stub.pieces = (ANSWER,)
    ask(page, "When?")
    page.get_by_role("button", name="Good answer").click()
    page.evaluate(FLAT)
    page.evaluate(SNIFFER.read_text())
    page.evaluate("new Promise(done => HTMLCS.process('WCAG2AA', document, done))")
    found = page.evaluate(
        "HTMLCS.getMessages().filter(m => m.type === 1).map(m => [m.code, m.element.outerHTML, m.msg])"
    )
    assert found == []
