"""The skills manager in a real browser: a draft is checked while typed, tried, published, compared, rolled back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from server.skills.api_keys import digest
from tests.browser.conftest import Visitor
from tests.browser.widget.test_accessibility import violations
from tests.support.harness import KEY, OTHER, Served, ledger_of, parts, says, served

HELP = f'name = "help"\ntitle = "Help desk"\nsystem = "Be brief."\nkeys = ["{digest(KEY)}"]\norigins = ["https://a.example"]\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "help.toml").write_text(HELP)
    (tmp_path / "other.toml").write_text('name = "other"\ntokens_per_day = 5000\n')
    runner = says(tmp_path, "Good day.")
    with served(parts(tmp_path, runner, (OTHER,), skill_revisions="edit"), runner) as made:
        yield made


def opened(open_page: Visitor, server: Served, **options: object) -> Page:
    page = open_page(f"{server.admin}/admin/manager", **options)
    expect(page.locator("#list button").first).to_be_visible()
    return page


def prompt_of(server: Served) -> str:
    return next((skill.system for skill in server.parts.skills if skill.name == "help"), "")


def test_a_draft_goes_from_typing_to_visitors_and_back(server: Served, open_page: Visitor) -> None:
    page = opened(open_page, server)
    page.on("dialog", lambda dialog: dialog.accept("help"))
    page.get_by_role("button", name="New skill").click()
    editor = page.get_by_label("The skill's file")
    editor.fill(HELP.replace("system", "sistem"))
    expect(page.locator("#problem")).to_contain_text("did you mean `system`?")
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
    assert "%" in (page.locator(".turn.assistant span").first.get_attribute("title") or "")
    expect(page.locator("#prompt")).to_contain_text("Be very brief.")
    assert [row["key_id"] for row in ledger_of(server)] == ["draft"]
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator("#done")).to_have_text("Revision 2 is served.")
    assert prompt_of(server) == "Be very brief."
    page.get_by_role("button", name="Compare revision 1 with the served one").click()
    expect(page.locator("#diff .minus").last).to_have_text('-system = "Be brief."')
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#done")).to_have_text("Revision 1 is served.")
    assert prompt_of(server) == "Be brief."
    expect(page.locator("#revisions tbody tr")).to_have_count(2)
    page.get_by_text("What each field means").click()
    page.get_by_label("Find").fill("tokens in a day")
    expect(page.locator("#fields dt")).to_have_text(["tokens_per_day"])


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 390)])
def test_it_fits_its_window_and_axe_finds_nothing(server: Served, open_page: Visitor, scheme: str, width: int) -> None:
    page = opened(open_page, server, bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator("#problem")).to_contain_text("Valid")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert violations(page) == []
