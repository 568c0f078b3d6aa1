from collections.abc import Callable
from pathlib import Path

import pytest

from server.knowledge import settings
from server.knowledge.build.building import Built, build
from server.knowledge.search import Knowledge

Builder = Callable[..., Built]

PAGES = {
    "opening.md": "# Opening hours\n\nThe shop is open from nine to five.\n\n## Sundays\n\nOn Sundays it is closed.\n",
    "returns.md": "# Returns\n\n## How do I return a parcel?\n\nBring the parcel and the receipt to any counter.\n",
}


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder of two Markdown pages."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    """Builds `knowledge` in `tmp_path` from TOML, by default of the folder `pages`."""

    def run(text: str = '[[sources]]\npath = "pages"', head: str = "", output: str = "knowledge") -> Built:
        file = tmp_path / "knowledge.toml"
        file.write_text(f'name = "shop"\n{head}\n{text}\n')
        return build(settings.read(file), tmp_path, tmp_path / output, shown=False)

    return run


@pytest.fixture
def opened(pages: Path, built: Builder, tmp_path: Path) -> Knowledge:
    """The two pages as a knowledge without vectors."""
    built()
    return Knowledge.open(tmp_path / "knowledge")
