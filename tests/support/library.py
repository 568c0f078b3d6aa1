"""A small knowledge without vectors, of a library's pages; some are for staff."""

from pathlib import Path

from server.knowledge import settings
from server.knowledge.build.building import build

ODD = 'Heating needs "temperature = 1.5" or \\d{99999} | start: /x/.'
PAGES = {
    "heating.md": f"# Heating temperature\n\n{ODD}\n",
    "hours.md": "# Opening hours\n\nThe library opens at nine and closes at five.\n\n## Sundays\n\nIt is closed.\n",
    "fees.md": "# Fees\n\n## What does a late book cost?\n\nA late book costs ten cents a day.\n",
    "staff.md": "# Alarm code\n\nThe alarm code of the library is hidden under the red carpet.\n",
}
FILLER = "# {n}\n\nNumber {n} is about {words}.\n"
WORDS = ("apples", "bridges", "clouds", "dragons", "engines", "flutes", "gardens", "harbours", "islands", "jewels")


def library(folder: Path) -> Path:
    """Build the knowledge in `folder` and return its directory."""
    pages = folder / "pages"
    pages.mkdir()
    for name, text in PAGES.items():
        (pages / name).write_text(text)
    for n, words in enumerate(WORDS):
        (pages / f"filler{n}.md").write_text(FILLER.format(n=n, words=words))
        (pages / f"staff{n}.md").write_text(FILLER.format(n=f"Rota {n}", words=words))  # BM25 needs several documents
    file = folder / "knowledge.toml"
    file.write_text(
        'name = "library"\n'
        '[[sources]]\npath = "pages"\nexclude = ["staff*.md"]\nurl = "https://library.example/{name}"\n'
        '[[sources]]\npath = "pages"\ninclude = ["staff*.md"]\ngroups = ["staff"]\nurl = "https://library.example/{name}"\n'
    )
    build(settings.read(file), folder, folder / "library", shown=False)
    return folder / "library"
