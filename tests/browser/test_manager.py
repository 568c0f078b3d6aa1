"""The skills manager in a real browser: a draft is checked while typed, tried, published, compared, rolled back."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from server.skills.api_keys import digest
from tests.browser.conftest import Visitor as Open
from tests.browser.support.drivers import Engine
from tests.browser.test_engines import engine as engine
from tests.browser.widget.test_accessibility import violations
from tests.server.web.test_listeners import call
from tests.support.harness import KEY, ORIGIN, OTHER, Served, ledger_of, parts, says, served
from tests.support.visitor import Visitor

HELP = f'name = "help"\ntitle = "Help desk"\nsystem = "Be brief."\nkeys = ["{digest(KEY)}"]\norigins = ["{ORIGIN}"]\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "help.toml").write_text(HELP)
    (tmp_path / "other.toml").write_text('name = "other"\ntokens_per_day = 5000\n')
    runner = says(tmp_path, "Good day.")
    settings = {"skill_revisions": "edit", "keys": str(tmp_path / "keys.json"), "conversation_storage": "database"}
    own = tmp_path / "knowledge" / "help" / "knowledge.toml"  # an encoder would take seconds
    own.parent.mkdir(parents=True)
    own.write_text('name = "help"\n\n[[sources]]\npath = "documents"\n')
    with served(parts(tmp_path, runner, (OTHER,), **settings), runner) as made:
        yield made


def opened(open_page: Open, server: Served, **options: object) -> Page:
    page = open_page(f"{server.admin}/admin/manager", **options)
    expect(page.locator("#list button").first).to_be_visible()
    return page


def prompt_of(server: Served) -> str:
    return next((skill.system for skill in server.parts.skills if skill.name == "help"), "")


def test_a_draft_goes_from_typing_to_visitors_and_back(server: Served, open_page: Open) -> None:
    page = opened(open_page, server)
    page.get_by_role("button", name="New skill").click()
    page.get_by_label("Name").fill("help")
    page.get_by_label("Name").press("Enter")
    editor = page.get_by_label("The skill's file")
    expect(editor).to_have_value(re.compile('name = "help"'))
    editor.fill(HELP.replace("system", "sistem"))
    expect(page.locator("#problem")).to_contain_text("did you mean `system`?")
    page.get_by_role("button", name="Go to line 3").click()
    assert selected(page) == 'sistem = "Be brief."'
    editor.fill(HELP)
    expect(page.locator("#problem")).to_contain_text("Valid, revision")
    page.get_by_label("Why").fill("the first")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator("#done")).to_have_text("Revision 1 is served.")
    assert prompt_of(server) == "Be brief."
    editor.fill(HELP.replace("brief", "very brief"))
    page.get_by_label("Your question").fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.assistant")).to_contain_text("Good day.")
    expect(page.locator(".turn .numbers")).to_contain_text("ended by stop")
    page.locator(".token").first.hover()
    expect(page.locator("#chances")).to_contain_text(re.compile(r'^"G" [0-9.]+ %, instead of '))
    page.locator(".said").press("ArrowRight")
    expect(page.locator("#chances")).to_contain_text('"o"')
    expect(page.locator("#prompt")).to_contain_text("Be very brief.")
    assert [row["key_id"] for row in ledger_of(server)] == ["draft"]
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator("#done")).to_have_text("Revision 2 is served.")
    assert prompt_of(server) == "Be very brief."
    page.get_by_role("button", name="Compare revision 1 with the served one").click()
    expect(page.locator("#diff .minus").last).to_have_text('-system = "Be brief."')
    editor.fill(HELP.replace("brief", "silent"))
    page.get_by_role("button", name="Show the difference").click()
    expect(page.locator("#diff .plus").last).to_have_text('+system = "Be silent."')
    page.get_by_role("button", name="Roll back to 1").click()
    expect(page.locator("#done")).to_have_text("Revision 1 is served.")
    assert prompt_of(server) == "Be brief."
    expect(page.locator("#revisions tbody tr")).to_have_count(2)


def test_a_field_is_found_explained_and_added(server: Served, open_page: Open) -> None:
    page = opened(open_page, server)
    page.get_by_text("What each field means").click()
    page.get_by_label("Find").fill("calendar month")
    expect(page.locator("#fields dt")).to_have_text(["tokens_per_month Add"])
    page.get_by_role("button", name="Add tokens_per_month").click()
    expect(page.locator("#about")).to_contain_text("tokens_per_month")
    page.keyboard.type("9000")
    editor = page.get_by_label("The skill's file")
    expect(editor).to_have_value(re.compile("^tokens_per_month = 9000$", re.MULTILINE))
    expect(page.locator("#problem")).to_contain_text("Valid, revision")


def selected(page: Page) -> str:
    """The text that is selected in the editor."""
    return str(page.evaluate("(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.querySelector('#text'))"))


def test_a_new_skill_and_what_was_typed_outlive_a_look_at_another(server: Served, open_page: Open) -> None:
    assert call(server.admin, "/admin/skills/help/revisions", {"text": HELP, "after": 0}).status == 201
    assert call(server.admin, "/admin/skills/help/publish", {"number": 1}).status == 200
    page = opened(open_page, server)
    page.get_by_role("button", name="New skill").press("Enter")
    page.get_by_label("Name").fill("Two Words")
    page.get_by_label("Name").press("Enter")
    expect(page.locator("#new-problem")).to_contain_text("small letters")
    page.get_by_label("Name").fill("second")
    page.get_by_label("Begin with").select_option("help")
    page.get_by_role("button", name="Make a draft").press("Enter")
    editor = page.get_by_label("The skill's file")
    expect(editor).to_be_focused()
    expect(editor).to_have_value(re.compile('^name = "second"'))
    assert digest(KEY) not in editor.input_value()  # its keys would open the copy too
    page.locator("#list").get_by_role("button", name="Help desk").press("Enter")
    expect(editor).to_have_value(HELP)
    expect(page.locator("#list button:focus")).to_contain_text("Help desk")
    page.locator("#list").get_by_role("button", name="second").press("Enter")
    expect(editor).to_have_value(re.compile('^name = "second"'))
    page.get_by_role("button", name="Discard").press("Enter")
    page.get_by_role("button", name="Discard it").press("Enter")
    expect(page.locator("#list")).not_to_contain_text("second")
    expect(editor).to_have_value(HELP)


def test_a_reply_is_stopped_and_its_question_may_be_asked_anew(server: Served, open_page: Open) -> None:
    page = opened(open_page, server)
    page.route("**/try", lambda route: None)  # it never answers
    page.get_by_label("Your question").fill("hello")
    page.get_by_label("Your question").press("Enter")
    expect(page.locator(".turn.waiting")).to_have_count(1)
    page.get_by_role("button", name="Stop", exact=True).press("Enter")
    expect(page.locator(".turn .numbers")).to_have_text("stopped here")
    page.unroute("**/try")
    page.route("**/try", lambda route: route.abort())
    page.get_by_label("Your question").fill("hello")
    page.get_by_label("Your question").press("Enter")
    expect(page.locator("#trouble")).to_contain_text("does not answer")
    expect(page.get_by_label("Your question")).to_have_value("hello")


@pytest.mark.parametrize(
    ("role", "shown"), [("viewer", []), ("editor", ["Save a revision"]), ("publisher", ["Save a revision", "Publish"])]
)
def test_a_role_sees_what_it_may_do(server: Served, open_page: Open, role: str, shown: list[str]) -> None:
    page = open_page(f"{server.admin}/healthz")

    def as_role(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "role": role})

    page.route("**/admin/skills", as_role)
    page.goto(f"{server.admin}/admin/manager")
    expect(page.locator("#mode")).to_contain_text("" if role == "publisher" else f"Your role is {role}")
    buttons = page.locator("#actions > button").filter(visible=True)
    expect(page.locator("#list [aria-current=true]")).to_be_visible()
    names = [name for name in buttons.all_text_contents() if name in ("Save a revision", "Publish")]
    assert names == shown
    page.locator("#conversations > summary").click()
    expect(page.locator("#conversations-list")).to_contain_text(f"your role is {role}")


def test_an_experiment_by_the_keyboard(server: Served, open_page: Open) -> None:
    for number, text in enumerate((HELP, HELP.replace("brief", "very brief"))):
        body = {"text": text, "after": number, "reason": "a test"}
        assert call(server.admin, "/admin/skills/help/revisions", body).status == 201
    assert call(server.admin, "/admin/skills/help/publish", {"number": 1}).status == 200
    page = opened(open_page, server)
    page.get_by_label("answer").fill("40")
    page.get_by_role("button", name="Start", exact=True).press("Enter")
    expect(page.locator("#done")).to_have_text("The experiment runs.")
    expect(page.locator("#experiment")).to_contain_text("Revision 2 answers 40 % of the visitors' conversations")
    for _ in range(8):
        Visitor(server).ask("hello")
    page.reload()
    expect(page.locator("#experiment tbody tr")).to_have_count(6)
    counts = page.locator("#experiment tbody tr").first.locator("td").all_text_contents()
    assert int(counts[0]) + int(counts[1]) == 8
    page.get_by_role("button", name="Revision 2 wins").press("Enter")
    expect(page.locator("#done")).to_have_text("Revision 2 answers everybody.")
    assert prompt_of(server) == "Be very brief."


def test_keys_documents_and_what_visitors_said(server: Served, open_page: Open) -> None:
    assert call(server.admin, "/admin/skills/help/revisions", {"text": HELP, "after": 0}).status == 201
    assert call(server.admin, "/admin/skills/help/publish", {"number": 1}).status == 200
    page = opened(open_page, server)
    visitor = Visitor(server)
    reply = visitor.ask("Where is <b>it</b>?")[0].data["reply"]
    assert visitor.post("feedback", {"reply": reply, "rating": "down", "comment": "<i>bad</i>"}).status == 204
    page.locator("#keys > summary").press("Enter")
    page.get_by_label("What it is for").fill("the shop")
    page.get_by_role("button", name="Make a key").press("Enter")
    expect(page.locator("#secret-text")).to_contain_text("sk-")
    page.get_by_role("button", name="I have it").press("Enter")
    expect(page.locator("#secret-text")).to_be_hidden()
    page.get_by_role("button", name="Revoke the key").press("Enter")
    page.get_by_role("button", name="Revoke it").press("Enter")
    expect(page.locator("#keys-list")).to_contain_text("revoked")
    page.locator("#knowledge > summary").press("Enter")
    page.locator("#upload").set_input_files(
        {"name": "hours.md", "mimeType": "text/markdown", "buffer": b"# Hours\n\nThe workshop opens at nine.\n"}
    )
    page.get_by_role("button", name="Upload").press("Enter")
    expect(page.locator("#documents")).to_contain_text("hours.md")
    page.get_by_role("button", name="Build the knowledge").press("Enter")
    page.get_by_role("button", name="Put it into the text").press("Enter")
    expect(page.get_by_label("The skill's file")).to_have_value(re.compile("built-1"))
    page.get_by_label("Your question").fill("When does the workshop open?")
    page.get_by_role("button", name="Send", exact=True).press("Enter")
    expect(page.locator("#passages-title")).to_have_text(re.compile("^[0-9] passages? found"))
    page.locator("#said > summary").press("Enter")
    expect(page.locator("#ratings")).to_contain_text("<i>bad</i>")
    page.locator("#conversations > summary").press("Enter")
    expect(page.locator("#conversations-list summary")).to_contain_text("1 question")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 390), ("dark", 320)])
def test_it_fits_its_window_and_axe_finds_nothing(server: Served, open_page: Open, scheme: str, width: int) -> None:
    page = opened(open_page, server, bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator("#problem")).to_contain_text("Valid")
    page.get_by_label("Your question").fill("hello")
    page.get_by_label("Your question").press("Enter")
    expect(page.locator(".turn .numbers")).to_contain_text("ended by stop")
    page.locator(".said").press("ArrowRight")
    page.get_by_label("The skill's file").fill('name = "help"\nsistem = "x"')
    expect(page.locator("#problem summary")).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Save a revision").click()
    expect(page.locator("#trouble")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert violations(page) == []
    page.get_by_role("button", name="Close").click()
    for button in ("New skill", "Discard"):
        page.get_by_role("button", name=button, exact=True).click()
        assert violations(page) == []
        page.keyboard.press("Escape")


def seen_by(selector: str) -> str:
    """An expression: the text of an element, or undefined."""
    return f"document.querySelector('{selector}')?.textContent"


def test_the_page_in_firefox_and_webkit(server: Served, engine: Engine) -> None:
    engine.open(f"{server.admin}/admin/manager")
    engine.run(
        "window.violations = [];"
        "document.addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective));"
    )
    engine.until("document.querySelector('#problem').textContent.startsWith('Valid, revision')")
    engine.run("document.querySelector('#reason').focus()")
    engine.press(*"first")
    engine.run("document.querySelector('#publish').focus()")
    engine.press("Enter")
    engine.until(seen_by("#done"), "Revision 1 is served.")
    engine.run("document.querySelector('#question').focus()")
    engine.press(*"hello")
    engine.run("document.querySelector('#ask button').focus()")
    engine.press("Enter")
    engine.until("document.querySelector('.turn .numbers')?.textContent.includes('ended by stop')")
    engine.run("document.querySelector('#keys summary').focus()")
    engine.press("Enter")
    engine.until("document.querySelector('#keys-list').textContent.includes('No key opens')")
    engine.run("document.querySelector('#key-note').focus()")
    engine.press(*"shop", "Enter")
    engine.until("document.querySelector('#secret-text').textContent.startsWith('sk-')")
    assert engine.run("return document.documentElement.scrollWidth <= innerWidth")
    assert engine.run("return violations") == []
