"""The documentation hangs together: one page of README, links that lead somewhere, and files that exist."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import PAGES, name

LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
README_LINES = 120
PICTURE_BYTES = 150_000


def test_the_readme_is_one_page_with_a_small_picture() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
    assert (ROOT / "docs/images/chat.png").stat().st_size <= PICTURE_BYTES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in (one or other for one, other in LINK.findall(text)):
        if not target.startswith(("http://", "https://")):
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert navigation == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent != ROOT}


def test_every_recipe_has_a_how_to() -> None:
    described = set(re.findall(r"^## .*`(\S+\.toml)`", (ROOT / "docs/explain/recipes.md").read_text(), re.MULTILINE))
    assert described == {path.name for path in (ROOT / "examples/recipes").glob("*.toml")}


def test_each_file_on_the_way_of_a_token_and_a_weight_exists() -> None:
    text = (ROOT / "docs/explain/architecture.md").read_text().split("<!-- tree -->")[0]
    files = re.findall(r"`((?:server|pruning|widget|tests)/[\w/.]*)`", text)
    assert len(files) > 40
    assert not [file for file in files if not (ROOT / file).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")], ids=name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    files = re.findall(r"`((?:server|pruning|widget|tests|deploy|docs|examples)/[\w/.-]*)`", text)
    assert not [file for file in files if not (ROOT / file).exists()]
