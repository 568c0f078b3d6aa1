"""No docstring, comment or page is written in the phrases of a translation."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN = (
    r"those that", r"so many", r"as many as there are", r"stands?(?!-| out| behind| still)", r"(?:is|are|be|was) had",
    r"of which none", r"whoever", r"whom", r"what is \w+ of it", r"(?:is|are|was|were) to be", r"(?:is|are) to answer",
    r"again and again", r"one more", r"(?:is|are) told(?! apart)", r"lets \w+ be", r"in the place of", r"manyth",
)  # fmt: skip
PHRASE = re.compile(rf"\b(?:{'|'.join(FORBIDDEN)})\b", re.IGNORECASE)
C_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
UNREAD = ("docs/results/log.md", "widget/node_modules/", "server/web/assets/widget/", "tests/docs/test_prose.py")
READERS = (".py", ".cpp", ".hpp", ".ts", ".js", ".md", ".toml", ".yml", ".yaml", ".txt", "Makefile")


def files() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [ROOT / name for name in tracked if name.endswith(READERS) and not name.startswith(UNREAD)]


def prose(path: Path) -> Iterator[str]:
    """What people read in a file: docstrings and comments of sources, and the whole of a page but its code."""
    text = path.read_text()
    if path.suffix == ".py":
        yield from python(text)
    elif path.suffix in (".cpp", ".hpp", ".ts", ".js"):
        yield from C_COMMENT.findall(text)
    elif path.suffix == ".md":
        yield re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    else:
        yield from re.findall(r"#[^\n]*", text)


def python(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(said))):
                yield said
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_written_plainly(path: Path) -> None:
    found = [
        " ".join(text[max(hit.start() - 30, 0) : hit.end() + 30].split())
        for text in prose(path)
        for hit in PHRASE.finditer(text)
    ]
    assert not found
