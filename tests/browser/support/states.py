"""Walks a page's panel through every state that a visitor can see; callers inspect each."""

from collections.abc import Iterator

from playwright.sync_api import Page, expect

from tests.browser.support.stub import Stub, turn

QUESTION = "How do I prune an old apple tree without losing next year's fruit?"
ANSWER = """## An old apple tree

Prune it **in late winter**, over two or three years:

1. Cut out dead and crossing wood first.
2. Shorten long shoots to an outward bud, but cut less than a fifth of the crown in a year, or it makes water shoots.
3. Leave the `fruit_spurs` alone.

| Wood | When | How much |
|:-----|:-----|---------:|
| Dead | any time | all |
| Water shoots | July | half |
| Old spurs | winter | a third |

```python
def share(height: float) -> float:
    return min(0.2, 1 / height)  # of the crown, never more than a fifth
```

> A tree that was left alone for years is brought back slowly.

See [the society's guide](https://example.org/apples) for drawings.
"""
HALF = ANSWER[: ANSWER.index(" or it makes")]
PASSAGE = """Apples and pears are pruned in late winter, while they rest.

Old trees take two or three years: begin with dead and crossing wood, then open the crown to the light. \
Cut less than a fifth of the crown in a year, or the tree makes water shoots; these are torn out in July. \
Fruit spurs stay, except the oldest third, which are thinned so that the others bear larger fruit.

- Saws and secateurs are cleaned between trees, because canker travels on them.
- Wounds stay open: paint keeps the wood wet.
"""
SOURCES = [
    {"title": "Apples and pears: winter pruning", "url": "https://example.org/a", "passage": PASSAGE},
    {"title": "Restoring an old tree", "url": "https://example.org/b"},
    {"title": "Canker and clean tools", "url": "https://example.org/c", "passage": "Clean the saw between trees."},
]
SKILL = {
    "name": "help",
    "title": "Garden help",
    "greeting": "Hello! I can help with **pruning**, planting and pests. What do you grow?",
    "starters": ["When do I prune roses?", "My tomatoes have brown spots", "What grows in the shade?"],
}


def ask(page: Page, question: str) -> None:
    page.locator(".composer textarea").fill(question)
    page.keyboard.press("Enter")


def walk(page: Page, stub: Stub) -> Iterator[str]:
    """Bring the panel of an open host page into each state in turn; yields the state's name."""
    stub.reset()
    stub.skill = dict(SKILL)
    yield "closed"
    if "/inline" not in page.url:  # which opens by itself
        page.locator(".launcher").click()
    expect(page.locator(".starter")).to_have_count(3)
    yield "greeting"
    yield from answering(page, stub)
    yield from judging(page)
    yield from failing(page, stub)
    yield from returning(page, stub)


def answering(page: Page, stub: Stub) -> Iterator[str]:
    """An answer awaited, growing, stopped and complete."""
    stub.pieces, stub.hold = (), True
    ask(page, QUESTION)
    expect(page.locator(".dots")).to_be_visible()
    yield "waiting"
    page.locator(".stop").click()
    expect(page.locator(".hint")).to_be_visible()
    stub.pieces = (HALF,)
    ask(page, QUESTION)
    expect(page.locator(".answer li")).to_have_count(2)
    yield "streaming"
    page.locator(".stop").click()
    expect(page.locator(".hint")).to_have_count(2)
    yield "stopped"
    stub.pieces, stub.hold, stub.citations = (ANSWER,), False, SOURCES
    ask(page, QUESTION)
    expect(page.locator(".sources")).to_be_visible()
    yield "answered"
    page.locator("summary").first.click()
    expect(page.locator(".sources blockquote").first).to_be_in_viewport()
    yield "quoted"
    page.locator(".log").evaluate("e => e.scrollTop -= 300")
    expect(page.locator(".latest")).to_be_visible()
    yield "scrolled"
    page.locator(".latest").click()


def judging(page: Page) -> Iterator[str]:
    """A rating, its comment, and the thanks."""
    page.locator(".up").last.click()
    expect(page.locator(".comment")).to_be_visible()
    yield "rated"
    page.locator(".comment textarea").fill("The table was what I needed.")
    yield "commenting"
    page.locator(".comment button").click()
    expect(page.locator(".comment")).to_have_count(0)
    yield "thanked"


def failing(page: Page, stub: Stub) -> Iterator[str]:
    """A server error, a countdown, no connection, and an answer that broke off."""
    stub.citations = []
    stub.status = 500
    ask(page, "And pears?")
    expect(page.locator(".trouble-line")).to_be_visible()
    yield "failed"
    stub.status, stub.headers = 429, {"Retry-After": "60"}
    page.locator(".retry").last.click()
    expect(page.locator(".send")).to_be_disabled()
    yield "busy"
    page.locator(".fresh").click()
    expect(page.locator(".starter")).to_have_count(3)
    stub.status, stub.pieces, stub.cuts, stub.lost, stub.delay = 200, (HALF,), 1, True, 0.05
    ask(page, QUESTION)
    expect(page.locator(".trouble-line")).to_be_visible()
    yield "cut"
    stub.lost, stub.delay = False, 0.0
    page.context.set_offline(True)
    expect(page.locator(".notice")).to_be_visible()
    expect(page.locator(".send")).to_be_disabled()
    yield "offline"
    page.context.set_offline(False)


def returning(page: Page, stub: Stub) -> Iterator[str]:
    """The page reloaded, with its conversation."""
    stub.turns = [turn(QUESTION, ANSWER, rating="up", citations=SOURCES)]
    page.reload()  # which opens the panel again where it does not fill the screen
    if page.locator("html").evaluate("() => innerWidth <= 480"):
        page.locator(".launcher").click()
    expect(page.locator(".actions")).to_be_visible()
    yield "restored"
