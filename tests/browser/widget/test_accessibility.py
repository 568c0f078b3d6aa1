"""axe and pa11y find nothing in any state of the panel or on the host page: light, dark, wide, narrow, in Arabic."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Visitor
from tests.browser.support.states import walk
from tests.browser.support.stub import Stub
from tests.conftest import ROOT

WIDGET = ROOT / "widget"
AXE = WIDGET / "node_modules" / "axe-core" / "axe.min.js"
PA11Y = WIDGET / "node_modules" / "pa11y"
STATES = 16
# HTML_CodeSniffer does not look into shadow roots: the content of ours is moved to where it does.
INSIDE = """() => {
    const { shadowRoot } = document.querySelector("html > skill-chat");
    const rules = [...shadowRoot.adoptedStyleSheets].flatMap(sheet => [...sheet.cssRules]).map(rule => rule.cssText);
    return [rules.join("\\n"), [...shadowRoot.children].map(node => node.outerHTML).join("")];
}"""


def violations(page: Page) -> list[Any]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: run `npm ci` in widget/")
@pytest.mark.parametrize(("path", "scheme", "width"), [("", "light", 1280), ("/arabic", "dark", 320)])
def test_axe_finds_nothing(open_page: Visitor, host: str, stub: Stub, path: str, scheme: str, width: int) -> None:
    page = open_page(host + path, bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 640})
    found = {state: violations(page) for state in walk(page, stub)}
    assert found == {state: [] for state in found}
    assert len(found) == STATES


Check = Callable[[str, list[str]], list[Any]]


@pytest.fixture
def pa11y(browser: Browser, debugging_port: int) -> Iterator[Check]:
    """pa11y's findings on the running browser's page with this title."""
    version = urllib.request.urlopen(f"http://127.0.0.1:{debugging_port}/json/version")
    command = ["node", str(WIDGET / "test" / "pa11y.js"), json.load(version)["webSocketDebuggerUrl"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asking, answering = process.stdin, process.stdout
        assert asking
        assert answering

        def check(title: str, runners: list[str]) -> list[Any]:
            asking.write(json.dumps({"title": title, "runners": runners}) + "\n")
            asking.flush()
            found: list[Any] = json.loads(answering.readline())
            return found

        yield check
        asking.close()


@pytest.mark.skipif(not PA11Y.exists(), reason="pa11y is not installed: run `npm ci` in widget/")
def test_pa11y_finds_nothing(open_page: Visitor, pa11y: Check, host: str, stub: Stub) -> None:
    page, flat = open_page(host, bypass_csp=True), open_page("about:blank")
    title = page.title()
    found = {}
    for state in walk(page, stub):
        style, body = page.evaluate(INSIDE)
        style = re.sub(r":host(\([^{]*\))?(?=[ {])", ":root", style)
        flat.set_content(f'<!doctype html><html lang="en"><title>Inside</title><style>{style}</style>{body}')
        found[state] = pa11y(title, ["axe", "htmlcs"]) + pa11y("Inside", ["htmlcs"])
    assert found == {state: [] for state in found}
    assert len(found) == STATES
