"""Reads Markdown: headings with the anchors that MkDocs gives them, paragraphs, and code as it is written."""

import re
from collections.abc import Iterator

from server.knowledge.passages import Document
from server.knowledge.readers.marks import Mark, sections, title_of
from server.text.faq import markdown

FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n(?:---|\.\.\.)\s*\n", re.DOTALL)
TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
IMAGE = re.compile(r"!\[[^\]\[]*\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)")
LINK = re.compile(r"\[([^\]\[]*)\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)")
EXPLICIT = re.compile(r"\s*\{[:#][^}]*?#?([\w-]+)\s*\}\s*$")
BEGINS = re.compile(r"\s*(?:[-*+]\s|\d+[.)]\s|[|>:#])|\s*$")
"""Lines that do not go on with the paragraph before: items, rows, quotes, definitions and empty ones."""
CODE = ("    ", "\t")
BOLD_LEVEL = 7
"""The level of headings that are lines in bold, which have no anchor."""


def read(content: str) -> Document:
    """The page's title and sections."""
    front = FRONT_MATTER.match(content)
    named = TITLE.search(front[1]) if front else None
    page = COMMENT.sub("", content[front.end() :] if front else content)
    found = list(_marks(page))
    title = named[1] if named else title_of(found)
    return Document(title, sections(found, title))


def _marks(page: str) -> Iterator[Mark]:
    seen: dict[str, int] = {}
    for block in markdown.blocks(page):
        if not block.kind:
            yield Mark(plain(block.text))
            continue
        explicit = EXPLICIT.search(block.text)
        text = EXPLICIT.sub("", block.text)
        anchor = "" if block.level >= BOLD_LEVEL else (explicit[1] if explicit else slug(text, seen))
        yield Mark(plain(text), block.level, anchor)


def slug(heading: str, seen: dict[str, int]) -> str:
    """The anchor that Python-Markdown's `toc` gives a heading; repeated ones end in _1, _2, ..."""
    name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
    seen[name] = seen.get(name, -1) + 1
    return f"{name}_{seen[name]}" if seen[name] else name


def plain(text: str) -> str:
    """Text without pictures and the targets of links, its paragraphs on one line; code blocks stay as they are."""
    if markdown.FENCE.match(text):
        return text
    return unwrapped(LINK.sub(r"\1", IMAGE.sub("", text)))


def unwrapped(text: str) -> str:
    """Text with each paragraph and each item on one line, so that no cut falls on a soft line break."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        apart = BEGINS.match(line) or BEGINS.fullmatch(before) or before.endswith(("  ", "\\"))
        if apart or before.lstrip().startswith(("|", "#")) or (line.startswith(CODE) and before.startswith(CODE)):
            lines.append(line)
        else:
            lines[-1] = f"{before.rstrip()} {line.strip()}"
    return "\n".join(lines)
