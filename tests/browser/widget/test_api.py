"""The developer's API: options, the element, the function, events; and pages that interfere with it."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor, settled
from tests.browser.support.stub import Stub, turn
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.conftest import ROOT
from tests.support.harness import until

GUIDE = (ROOT / "docs" / "guide" / "widget.md").read_text()

NODES = """() => {
    const inner = e => e.shadowRoot ? count(e.shadowRoot) : 0;
    const count = root => [...root.querySelectorAll("*")].reduce((n, e) => n + 1 + inner(e), 0);
    return count(document);
}"""


def test_calls_queued_before_the_load_are_executed(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/queue")
    expect(page.get_by_role("dialog", name="My title")).to_be_visible()
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.asked[0]["text"] == "From the queue"
    assert stub.asked[0]["context"] == "Page: queue"
    assert page.evaluate("typeof SkillChat.version") == "string"


def test_every_option_and_no_option_for_the_model(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/options")
    page.get_by_role("button", name="Chat öffnen").click()
    panel = page.get_by_role("dialog", name="<b>Titel</b>")
    expect(panel).to_be_visible()
    box = panel.bounding_box()
    assert box is not None
    assert box["x"] == 20
    expect(page.locator(".starter")).to_have_text(["Eins?", "Zwei?"])
    expect(page.locator(".answer .text").first).to_have_text("Hallo!")
    assert page.locator(".label").inner_text() == "KI-Assistent"
    assert panel.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(22, 26, 24)"
    page.get_by_role("button", name="Zwei?").click()
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.sessions == [{"skill": "help", "key": "pk_test"}]
    assert set(stub.asked[0]) == {"text", "message"}
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [1, 0]
    page.get_by_role("button", name="Neuer Chat").click()
    expect(page.locator(".question")).to_have_count(0)
    page.get_by_role("button", name="Chat schließen").click()
    until(lambda: page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0])
    until(lambda: stub.resets == 1)


def test_elements_inline_and_apart(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/elements")
    first, second = page.locator("skill-chat").nth(0), page.locator("skill-chat").nth(1)
    expect(second.get_by_role("region", name="Second")).to_be_visible()  # it has `open`
    assert page.evaluate("document.activeElement === document.body")
    expect(first.get_by_role("region", name="First")).to_be_visible()  # an inline chat begins once it is in view
    for number, (chat, name) in enumerate([(first, "one"), (second, "two")], 1):
        chat.get_by_role("textbox", name="Your message").fill(f"To {name}")
        page.keyboard.press("Enter")
        expect(chat.locator(".answer .text").last).to_have_text("Hello world.")
        assert page.evaluate("sessionStorage.length") == number
    assert sorted(session["skill"] for session in stub.sessions) == ["one", "two"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_calls_and_events(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    page.evaluate("""() => {
        window.told = [];
        const names = "ready open close message response.start response.end error feedback reset".split(" ");
        for (const name of names) {
            document.addEventListener(`skillchat:${name}`, e => told.push([name, e.detail.text ?? null]));
        }
        window.counted = 0;
        window.count = () => counted++;
        SkillChat("on", "open", count);
    }""")
    page.evaluate("SkillChat('send', 'By script')")
    expect(answer(page)).to_have_text("Hello world.")
    page.get_by_role("button", name="Good answer").click()
    page.evaluate(
        "SkillChat('close'); SkillChat('off', 'open', count); SkillChat('toggle'); SkillChat('setTheme', 'dark')"
    )
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.locator(".panel").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(22, 26, 24)"
    page.evaluate("SkillChat('reset')")
    expect(page.locator(".question")).to_have_count(0)
    names = [name for name, _ in page.evaluate("told")]
    assert names == ["ready", "open", "message", "response.start", "response.end", "feedback", "close", "open", "reset"]
    assert {text for _, text in page.evaluate("told")} == {None}
    assert page.evaluate("counted") == 1
    page.evaluate("SkillChat('identify', 'a.b.c'); SkillChat('send', 'Who am I?')")
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.sessions[-1]["identity"] == "a.b.c"
    page.evaluate("SkillChat('destroy')")
    assert page.locator("skill-chat").count() == 0
    page.evaluate("SkillChat('init', { skill: 'help', eventText: '' }); SkillChat('send', 'Again')")
    expect(answer(page)).to_have_text("Hello world.")
    assert page.evaluate("told.filter(([, text]) => text)")[0] == ["message", "Again"]


def test_ratings_with_a_comment(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("textbox", name="What should we know?").fill("Too short")
    page.get_by_role("button", name="Send feedback").click()
    expect(page.get_by_text("Thank you for your feedback.").first).to_be_visible()
    expect(page.get_by_role("button", name="Bad answer")).to_be_focused()
    page.get_by_role("button", name="Bad answer").click()
    expect(page.get_by_role("button", name="Bad answer", pressed=False)).to_be_visible()
    until(lambda: len(stub.ratings) == 3)  # the button changes before its request arrives
    assert stub.ratings == [
        {"reply": "rep_1", "rating": "down"},
        {"reply": "rep_1", "rating": "down", "comment": "Too short"},
        {"reply": "rep_1", "rating": None},
    ]


def test_a_reload_brings_the_conversation_back(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "First")
    expect(page.locator(".actions")).to_be_visible()
    stub.turns = [
        turn("First", "Hello **world**.", rating="up"),
        turn("Second", "Half", id="rep_7", finish=None, next=2),
    ]
    stub.pieces = ("Half", " and", " whole")
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()  # it was open
    expect(page.locator(".question")).to_have_count(2)
    expect(answer(page)).to_have_text("Half and whole")
    expect(page.get_by_role("button", name="Good answer", pressed=True)).to_have_count(1)
    assert stub.resumed == ["rep_7?from=2"]


def test_again_takes_the_place_of_the_latest_answer(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    stub.pieces = ("Another",)
    page.get_by_role("button", name="Answer again").click()
    expect(answer(page)).to_have_text("Another")
    expect(page.locator(".question")).to_have_count(1)
    assert stub.asked[1]["replace"] == "rep_1"


def mount(page: Page, times: int) -> None:
    page.evaluate(
        """async times => {
        for (let n = 0; n < times; n++) {
            const chat = document.createElement("skill-chat");
            chat.setAttribute("skill", "help");
            chat.setAttribute("open", "");
            document.body.append(chat);
            await new Promise(done => chat.addEventListener("skillchat:open", done));
            chat.remove();
        }
    }""",
        times,
    )


def test_fifty_mounts_leave_nothing(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/elements")
    expect(page.get_by_role("region", name="Second")).to_be_visible()  # objects that it holds are not counted
    page.evaluate("""() => {
        window.held = 0;
        const { addEventListener: add, removeEventListener: remove } = EventTarget.prototype;
        EventTarget.prototype.addEventListener = function (type, listener, options) {
            if (this === window || this === visualViewport || this instanceof MediaQueryList) {
                held++;
                options?.signal?.addEventListener("abort", () => held--);
            }
            return add.call(this, type, listener, options);
        };
    }""")
    mount(page, 2)
    settled(page)
    before = page.evaluate(NODES)
    mount(page, 50)
    settled(page)
    assert page.evaluate(NODES) == before
    assert page.evaluate("held") == 0
    expect(page.locator("skill-chat")).to_have_count(2)
    stub.pieces, stub.hold = ("Half",), True
    second = page.locator("skill-chat").nth(1)
    second.get_by_role("textbox").fill("Hello")
    second.get_by_role("textbox").press("Enter")
    expect(second.locator(".answer .text").last).to_have_text("Half")
    assert stub.streams == 1
    second.evaluate("e => e.remove()")
    until(lambda: stub.streams == 0)
    assert stub.stopped == [], "only Stop stops"


@pytest.mark.parametrize(
    "swap",
    [
        "document.body.replaceChildren()",
        "document.documentElement.replaceChild(document.createElement('body'), document.body)",
        "document.documentElement.replaceChildren(document.createElement('head'), document.createElement('body'))",
    ],
)
def test_it_outlives_what_a_page_replaces(open_page: Visitor, host: str, stub: Stub, swap: str) -> None:
    page = open_page(f"{host}/nonce")
    open_chat(page)
    ask(page, "Before")
    expect(page.locator(".actions")).to_be_visible()
    page.evaluate(swap)
    ask(page, "After")
    expect(page.locator(".actions")).to_have_count(2)
    expect(page.locator("skill-chat")).to_have_count(1)


def test_a_page_that_interferes(open_page: Visitor, host: str, stub: Stub) -> None:
    """Clobbered names, shortcuts on every level, a replaced fetch, a polluted prototype."""
    page = open_page(f"{host}/traps")
    open_chat(page)
    page.evaluate("void (window.fetch = () => { throw new Error('not yours') })")
    page.keyboard.type("s/?")
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("s/?")
    page.keyboard.press("Enter")
    expect(answer(page)).to_have_text("Hello world.")
    assert page.evaluate("shortcuts") == []


def test_a_small_screen_holds_the_focus(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host, viewport={"width": 320, "height": 568})
    open_chat(page)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_have_attribute("aria-modal", "true")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.localName") == "skill-chat"
    page.set_viewport_size({"width": 1000, "height": 700})
    expect(dialog).not_to_have_attribute("aria-modal", "true")


def test_arabic_runs_from_right_to_left(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/arabic")
    page.get_by_role("button", name="فتح المحادثة").click()
    field = page.get_by_role("textbox", name="رسالتك")
    expect(field).to_be_focused()
    send, box = page.get_by_role("button", name="إرسال").bounding_box(), field.bounding_box()
    assert send is not None
    assert box is not None
    assert send["x"] < box["x"]
    field.fill("And pears?")  # in the visitor's own direction, or the mark would precede the words
    field.press("Enter")
    first, mark = page.locator(".question").last.evaluate("""node => [0, 9].map(at => {
        const range = document.createRange();
        range.setStart(node.lastChild, at);
        range.setEnd(node.lastChild, at + 1);
        return range.getBoundingClientRect().left;
    })""")
    assert first < mark


def test_an_accent_is_readable_whatever_its_colour(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/elements")
    ratios = page.evaluate("""async () => {
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const bright = colour => {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            const linear = v => ((v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(linear);
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        const chat = document.querySelectorAll("skill-chat")[1];
        const inside = selector => chat.shadowRoot.querySelector(selector);
        await new Promise(done => inside(".panel") ? done() : chat.addEventListener("skillchat:open", done));
        const send = inside(".send"), paper = getComputedStyle(inside(".panel"));
        const link = inside(".log").appendChild(document.createElement("a"));
        const found = [];
        const lights = [0, 30, 50, 70, 100];
        for (const theme of ["light", "dark"]) for (let hue = 0; hue < 360; hue += 20) for (const l of lights) {
            chat.setAttribute("data-theme", theme);
            chat.style.setProperty("--skill-chat-accent", `hsl(${hue} 100% ${l}%)`);
            const fill = getComputedStyle(send);
            found.push(ratio(bright(fill.backgroundColor), bright(fill.color)));
            link.style.color = "var(--accent)";
            found.push(ratio(bright(getComputedStyle(link).color), bright(paper.backgroundColor)));
        }
        return [found.length, Math.min(...found)];
    }""")
    assert ratios[0] == 2 * 18 * 5 * 2
    assert ratios[1] >= 4.5


def test_a_page_tries_every_option_live(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/try")
    page.get_by_label("label", exact=True).fill("Ask us")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask us")).to_be_visible()
    expect(page.locator("#line")).to_contain_text('data-label="Ask us"')
    page.get_by_label("lang", exact=True).select_option("pl")
    page.get_by_label("mode", exact=True).select_option("inline")
    page.locator("#place skill-chat").scroll_into_view_if_needed()
    expect(page.locator("#place").get_by_placeholder("Zadaj pytanie")).to_be_visible()
    expect(page.locator("skill-chat")).to_have_count(1)
    shown = set(page.locator("#options :is(input, select)").evaluate_all("all => all.map(one => one.name)"))
    options = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", GUIDE.split("## The function")[0], re.MULTILINE)
    documented = {name for cell in options for name in re.findall(r"[\w-]+", cell)}
    assert shown == documented - {"skill", "target"}, "the page chooses these two"
