"""`make release`: gathers a release's files in build/release, with the changelog's section and checksums of all.

The version is the one in pyproject.toml; nothing else names it but the image tags of deploy/kubernetes, which a test
compares.
"""

import hashlib
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUMS = "SHA256SUMS"


def version() -> str:
    """The product's version."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def section(changelog: str, number: str) -> str:
    """What the changelog says of the release `number`, with its heading; raises ValueError if there is nothing."""
    found = re.search(rf"^## {re.escape(number)}(?!\S).*?(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"docs/CHANGELOG.md has no section {number}, the version of pyproject.toml")
    return found[0].strip() + "\n"


def checksums(folder: Path) -> str:
    """A line `digest  name` for each file in `folder`, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def main(files: list[str]) -> int:
    """Write build/release anew with `files`, and print its checksums."""
    folder = ROOT / "build" / "release"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy2(file, folder)
    number = version()
    changes = section((ROOT / "docs" / "CHANGELOG.md").read_text(), number)
    (folder / f"secateur-{number}-changes.md").write_text(changes)
    sums = checksums(folder)
    (folder / SUMS).write_text(sums)
    print(sums, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
