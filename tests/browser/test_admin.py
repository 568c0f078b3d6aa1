"""The admin page in a real browser and on the real server, against the ledger's own figures."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from playwright.sync_api import expect

from server.metering.ledger.records import Opening, Outcome, Settlement, Usage
from server.skills import api_keys
from server.skills.key_limits import KeyLimits
from tests.browser.conftest import Visitor
from tests.browser.support.drivers import free_port
from tests.server.web.access.test_guard import key_of
from tests.server.web.test_budgets import ASK, ask
from tests.support.harness import HELP, OTHER, Served, parts, says, served
from tests.support.provider import CLIENT_SECRET, provider


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    runner = says(tmp_path, "Good day.")
    skills = (replace(HELP, tokens_per_day=1000), OTHER)
    with served(parts(tmp_path, runner, skills), runner) as made:
        yield made


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_the_ledgers_figures_and_follows_them(server: Served, open_page: Visitor, scheme: str) -> None:
    page = open_page(f"{server.admin}/admin", color_scheme=scheme)
    expect(page.locator("#state")).to_have_text("Live")
    expect(page.locator("#today")).to_have_text("0")
    expect(page.locator("#days")).to_have_text("No reply was counted in these days.")
    for _ in range(3):
        ask(server, ASK)
    with closing(sqlite3.connect(server.parts.config.ledger)) as database:
        [(used,)] = database.execute("SELECT sum(prompt_tokens + output_tokens) FROM requests")
    expect(page.locator("#today")).to_have_text(str(used))
    expect(page.locator("#days svg title").last).to_contain_text(f"help: {used}")
    expect(page.locator(".budget .left")).to_have_text(f"{used} of 1,000, {1000 - used} left")
    expect(page.locator("#skills tbody tr")).to_have_count(1)
    expect(page.locator("#skills tbody td").nth(1)).to_have_text("3")
    expect(page.locator("#outcomes .bar i")).to_have_attribute("title", "ended by itself: 3")
    expect(page.locator("#latency svg")).to_have_count(2)
    assert all(url.startswith(f"{server.admin}/admin") for url in open_page.asked)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 244)", "dark": "rgb(15, 19, 17)"}[scheme]


def test_seven_of_many_skills_have_a_colour_of_their_own(tmp_path: Path, open_page: Visitor) -> None:
    """The other skills share a colour; all are in the table with their budgets."""
    skills = [replace(HELP, name=f"skill-{index:02}", tokens_per_day=10_000) for index in range(12)]
    runner = says(tmp_path, "Good day.")
    keys = tmp_path / "keys.json"
    _, key = api_keys.create(keys, ["skill-00"], "", limits=KeyLimits(tokens_per_month=100))
    made = parts(tmp_path, runner, skills, keys=str(keys))
    made.ledger.open(Opening("of a key", "skill-00", "tiny", 30, 70, key_id=key.id)).result()
    for index, skill in enumerate(skills):
        day = made.ledger.open(Opening(skill.name, skill.name, "tiny", 10)).result().day
        usage = Usage(10, 0, 100 * (index + 1))
        outcome: Outcome = "error" if index == 3 else "stop"
        made.ledger.settle(Settlement(skill.name, usage, outcome, skill.name, day, 0.5, 0.1)).result()
    with served(made, runner) as server:
        page = open_page(f"{server.admin}/admin", viewport={"width": 390, "height": 800})
        expect(page.locator("#legend li")).to_have_count(8)
        expect(page.locator("#legend li").first).to_have_text("skill-11")
        expect(page.locator("#legend li").last).to_have_text("others")
        expect(page.locator("#days svg title").last).to_contain_text("others: 1,550")
        swatches = page.locator("#legend li").evaluate_all(
            "all => all.map(li => getComputedStyle(li, '::before').backgroundColor)"
        )
        assert len(set(swatches)) == 8
        expect(page.locator("#days-table th")).to_have_count(13)
        expect(page.locator(".budget b")).to_have_count(13)
        expect(page.locator(".budget.out")).to_have_text(f"key {key.id} this month0 of 100, none left")
        expect(page.locator(".budget b").nth(1)).to_have_text("skill-11")  # the fullest budget first
        expect(page.locator("#outcomes .legend")).to_contain_text("failed 1")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_its_window_and_says_when_the_server_is_gone(server: Served, open_page: Visitor, width: int) -> None:
    ask(server, ASK)
    page = open_page(f"{server.admin}/admin", viewport={"width": width, "height": 800})
    expect(page.locator("#days svg")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.context.set_offline(True)
    expect(page.locator("#state")).to_have_text("No answer; these are the last figures")
    assert page.locator("#state").get_attribute("class") == "state bad"


def test_it_asks_for_a_required_key_and_passes_it_in_its_links(
    tmp_path: Path, open_page: Visitor, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, file = says(tmp_path, "Good day."), tmp_path / "admin.json"
    with served(parts(tmp_path, runner, admin_keys=str(file)), runner) as server:
        key = key_of(file, capsys, "--admin", "all")
        ask(server, ASK)
        page = open_page(f"{server.admin}/admin")
        expect(page.locator("#state")).to_have_text("A key is needed")
        expect(page.locator("#today")).to_have_text("-")
        page.get_by_label("Admin key").fill("sk-wrong")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#state")).to_have_text("This key does not open the page")
        page.get_by_label("Admin key").fill(key)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#state")).to_have_text("Live")
        expect(page.locator("#sign-in")).to_be_hidden()
        page.reload()
        expect(page.locator("#state")).to_have_text("Live")
        with page.expect_download() as download:
            page.get_by_role("link", name="rows").click()
        assert download.value.path().read_text().count('"skill":"help"') == 1
    assert key not in page.content()


def test_a_person_signs_in_at_the_provider_reloads_and_signs_out(tmp_path: Path, open_page: Visitor) -> None:
    port = free_port()
    admin = f"http://127.0.0.1:{port}"
    with provider(f"{admin}/admin/login/callback") as running:
        table = {"issuer": running.issuer, "client_id": "secateur", "client_secret": CLIENT_SECRET, "url": admin}
        login = {**table, "viewers": ["staff"], "operators": ["sre"]}
        runner = says(tmp_path, "Good day.")
        with served(parts(tmp_path, runner, admin_port=port, admin_login=login), runner):
            page = open_page(f"{admin}/admin")
            page.get_by_placeholder("Enter any login").fill("ada")
            page.get_by_placeholder("and password").fill("any")
            page.get_by_role("button", name="Sign-in").click()
            page.get_by_role("button", name="Continue").click()
            expect(page.locator("#state")).to_have_text("Live")
            expect(page.locator("#who")).to_have_text("ada@shop.example, operator")
            page.get_by_role("button", name="Reload skills").click()
            expect(page.locator("#reloaded")).to_contain_text("Nothing was reloaded")  # this test's skills are no files
            with page.expect_download() as download:
                page.get_by_role("link", name="CSV").click()
            assert download.value.path().read_text().startswith("day,skill")
            page.context.clear_cookies(name="secateur-admin")
            expect(page.locator("#state")).to_have_text("Signed out")
            page.get_by_role("link", name="Sign in").click()  # the provider still knows the person
            expect(page.locator("#state")).to_have_text("Live")
            page.get_by_role("button", name="Sign out").click()
            expect(page.get_by_role("heading", name="Signed out")).to_be_visible()
            expect(page.get_by_role("link", name="Sign out of the login provider")).to_be_visible()
            page.goto(f"{admin}/admin/login/callback?state=forged&code=x")
            expect(page.get_by_role("main")).to_contain_text("This browser did not begin this login")
