"""Reads a Markdown page as blocks: headings, bold lines, `Q:` lines and paragraphs; fenced code is kept verbatim."""

import re
from collections.abc import Iterator

from server.text.faq.blocks import Block

HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
UNDERLINE = re.compile(r"^ {0,3}(=+|-+)\s*$")
BOLD = re.compile(r"^\s*(\*\*|__)(.+?)\1\s*$")
ASKED = re.compile(r"^\s*\**Q\d*[.:]\**\s+(.*?)\**\s*$")
ANSWERED = re.compile(r"^\s*\**A\d*[.:]\**\s+")
SUMMARY = re.compile(r"^\s*<summary[^>]*>(.*?)</summary>\s*$")
FOLD = re.compile(r"</?details[^>]*>")
FENCE = re.compile(r"^ {0,3}(```|~~~)")


def blocks(page: str) -> list[Block]:
    """The blocks of the page."""
    return list(_read(page.splitlines()))


def _read(lines: list[str]) -> Iterator[Block]:
    """The blocks of `lines`."""
    text: list[str] = []
    fenced = False
    for line in lines:
        fenced ^= bool(FENCE.match(line))
        line = line if fenced else FOLD.sub("", line)
        heading = None if fenced else _heading(line, text)
        if heading:
            yield from _paragraph(text)
            yield heading
        elif line.strip() or fenced:
            text.append(line if fenced or FENCE.match(line) else _plain(line))
        else:
            yield from _paragraph(text)
    yield from _paragraph(text)


def _heading(line: str, before: list[str]) -> Block | None:
    """The heading in `line`, or the one line in `before` that it underlines, which is removed from there."""
    if found := HEADING.match(line):
        return Block(_inline(found[2]), f"h{len(found[1])}", len(found[1]))
    if (found := UNDERLINE.match(line)) and len(before) == 1:
        level = 1 if found[1].startswith("=") else 2
        return Block(_inline(before.pop()), f"h{level}", level)
    for kind, pattern, group in (("question", ASKED, 1), ("summary", SUMMARY, 1), ("bold", BOLD, 2)):
        if (found := pattern.match(line)) and not before:
            return Block(_inline(found[group]), kind, 7)
    return None


def _paragraph(text: list[str]) -> Iterator[Block]:
    """The lines gathered in `text` as a paragraph; empties `text`."""
    if any(line.strip() for line in text):
        yield Block("\n".join(text).strip("\n"))
    text.clear()


def _plain(line: str) -> str:
    """A line of running text without its `A:` mark."""
    return ANSWERED.sub("", line)


def _inline(text: str) -> str:
    """The text of a heading without emphasis, link and code marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*\*|__|`|<[^>]+>", "", text).strip()
