"""The fenced blocks of a page as one bash script that writes its files and runs its commands in order."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

AT_THE_END = "# at the end of "
RUNNABLE = ("sh", "toml", "python")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULTS = {"port": 8000, "admin_port": 9464}
"""Written into a server.toml that leaves them out, since no test may take these ports themselves."""
FENCE = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|(?:^<!-- not run: (?P<reason>[^\n]*) -->\n\n?)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of a page: its language, its lines, and the reason why it cannot run in a test, if there is one."""

    kind: str
    body: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks that a reader could run, with the invisible setups between them."""
    found = FENCE.finditer(page.read_text())
    made = [Block(m["kind"] or "sh", m["body"] or m["setup"], m["reason"]) for m in found if m["setup"] or m["kind"]]
    return [block for block in made if block.kind in RUNNABLE]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runs(page: Path) -> bool:
    return any(block.reason is None for block in blocks(page))


def script(page: Path) -> str:
    """A bash script of the page's blocks that stops at the first failure."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(page):
        if block.reason is None:
            lines += written(block)
    return "\n".join(lines)


def written(block: Block) -> Iterator[str]:
    """A block as lines of bash."""
    if block.kind == "sh":
        yield from ("set -x", block.body, "{ set +x; } 2>/dev/null")
    elif block.kind == "python":
        yield f"{sys.executable} - <<'PYTHON'\n{block.body}PYTHON"
    else:
        yield from file(block.body)


def file(body: str) -> Iterator[str]:
    """A block of TOML as the file that its first line names: `# NAME`, or before or after what NAME holds already."""
    first, lines = body.split("\n", 1)
    if first.startswith(AT_THE_END):  # a table, which would take what follows as its own
        yield f"cat >> {shlex.quote(first.removeprefix(AT_THE_END))} <<'TOML'\n{lines}TOML"
        return
    added = first.startswith("# added to ")
    path = shlex.quote(first.removeprefix("# added to ").removeprefix("# "))
    if first == "# server.toml":
        lines = "".join(f"{key} = {port}\n" for key, port in DEFAULTS.items() if f"\n{key} =" not in lines) + lines
    yield f"mkdir -p $(dirname {path}) && touch {path} && cp {path} before.toml"
    yield f"cat > {path} <<'TOML'\n{lines}TOML"
    if added:
        yield f"cat before.toml >> {path}"
