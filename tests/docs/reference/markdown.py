"""Pieces of Markdown: tables, and docstrings as running text."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; a vertical bar within a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def prose(docstring: str) -> str:
    """A docstring as Markdown: code in backticks stays, formulas and addresses outside of it are made safe."""
    parts = re.split(r"(`[^`]*`)", docstring.strip())
    return "".join(part if part.startswith("`") else _safe(part) for part in parts)


def _safe(text: str) -> str:
    """Escape what Markdown would take for emphasis or HTML, and make addresses links."""
    pieces = re.split(r"(https?://[^\s,;)]+[^\s,;).:])", text)
    return "".join(
        f"<{piece}>" if piece.startswith(("http://", "https://")) else re.sub(r"([*_<\[\]])", r"\\\1", piece)
        for piece in pieces
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
