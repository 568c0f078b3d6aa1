"""Measures what long chats cost in Chromium; run it on a quiet machine: `python -m tests.browser.exams.speed`.

For each number of earlier turns, the main thread's script, style and layout of a further turn, streamed in pieces;
then the longest tasks of 100 KB of Markdown, in one piece and in 50.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, expect, sync_playwright

from server.web.api.demo_page import page as host_page
from tests.browser.conftest import FLAGS, PATIENCE_MS
from tests.browser.support.stub import Stub, turn
from tests.conftest import ROOT
from tests.exams.servers.app_server import listening

ANSWER = (
    "The tree is pruned in late winter. " * 6 + "\n\n- one\n- two **bold**\n\n`code` and a [link](https://a.test)\n"
)
WORK = ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration")
ASK = """() => new Promise(done => {
    const root = document.querySelector("html > skill-chat").shadowRoot, send = root.querySelector(".send");
    const settled = () => send.hidden || setTimeout(done, 500);
    new MutationObserver(settled).observe(send, { attributes: true, attributeFilter: ["hidden"] });
    root.querySelector(".composer textarea").value = "Next?";
    root.querySelector("form:has(.composer)").requestSubmit();
})"""
TASKS = """() => {
    window.tasks = [];
    const note = list => tasks.push(...list.getEntries().map(entry => Math.round(entry.duration)));
    (window.watcher = new PerformanceObserver(note)).observe({ entryTypes: ["longtask"] });
}"""


@contextmanager
def opened(browser: Browser, host: str, stub: Stub, server: str, turns: int) -> Iterator[tuple[Page, CDPSession]]:
    """A page whose chat has this many turns."""
    stub.reset()
    stub.turns = [turn(f"Question {number}?", ANSWER) for number in range(turns)]
    page = browser.new_context(bypass_csp=True, reduced_motion="reduce").new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(host)
    page.evaluate("server => sessionStorage.setItem(`skill-chat ${server}/ help`, 'secret')", server)
    page.reload()
    page.locator(".launcher").click()
    expect(page.locator(".question")).to_have_count(turns)
    page.wait_for_timeout(1000)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    yield page, session
    page.context.close()


def spent(session: CDPSession) -> dict[str, float]:
    metrics: list[Any] = session.send("Performance.getMetrics")["metrics"]
    return {one["name"]: one["value"] * 1000 for one in metrics if one["name"] in WORK}


def measure_turns(browser: Browser, host: str, stub: Stub, server: str) -> None:
    for turns in (5, 250, 500):
        with opened(browser, host, stub, server, turns) as (page, session):
            stub.pieces, stub.delay = tuple(ANSWER[at : at + 12] for at in range(0, len(ANSWER), 12)), 0.02
            for _ in range(3):
                before = spent(session)
                page.evaluate(ASK)
                cost = {name: round(value - before[name]) for name, value in spent(session).items()}
                print(f"{turns} turns, one more: {sum(cost.values())} ms, {cost}", flush=True)


def measure_markdown(browser: Browser, host: str, stub: Stub, server: str) -> None:
    pages = [ROOT / "docs/reference/widget-protocol.md", ROOT / "docs/guide/widget.md"]
    text = ("".join(page.read_text() for page in pages) * 10)[:100_000]
    with opened(browser, host, stub, server, 1) as (page, _):
        page.evaluate(TASKS)
        for size, delay in ((len(text), 0.0), (2000, 0.05)):
            stub.pieces, stub.delay = tuple(text[at : at + size] for at in range(0, len(text), size)), delay
            page.evaluate("tasks.length = 0")
            page.evaluate(ASK)
            page.wait_for_timeout(4000)
            found = page.evaluate("tasks")
            print(
                f"100 KB in {len(stub.pieces)} pieces: longest task {max(found, default=0)} ms, {sum(found)} ms in all"
            )


def main() -> None:
    expect.set_options(timeout=PATIENCE_MS)
    stub = Stub()
    with listening(stub.app()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        totals = {"input": 1, "cached": 0, "output": 1, "requests": 1}
        with listening(host_page("help", f"{server}/widget.js", lambda: totals)) as host:
            measure_turns(browser, host, stub, server)
            measure_markdown(browser, host, stub, server)
        browser.close()


if __name__ == "__main__":
    main()
