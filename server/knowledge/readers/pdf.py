"""Reads PDF: one section for each page, below the outline's entry in force there; `#page=N` leads to it."""

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from server.knowledge.passages import Document, Section

HYPHEN = re.compile(r"(?<=\w)-\n(?=[a-z])")
BREAK = re.compile(r"(?<![.!?:;\n])\n(?=[a-z(])")
MOST_PAGES = 5000
DEEPEST = 4
"""Levels of the outline that become headings."""


def read(content: bytes) -> Document:
    """The document's title and one section a page; raises ValueError if it is no PDF, encrypted, or has no text."""
    try:
        reader = PdfReader(BytesIO(content), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is encrypted")
        count = len(reader.pages)
        if count > MOST_PAGES:
            raise ValueError(f"it has {count} pages, more than {MOST_PAGES}")
        title = str(reader.metadata.title or "") if reader.metadata else ""
        outline = dict(_outline(reader, reader.outline, ()))
        found = tuple(_pages(reader, outline))
    except (PyPdfError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"it cannot be read as PDF: {type(error).__name__}: {error}") from None
    if not found:
        raise ValueError("it has no text: its pages are pictures, which need text recognition first")
    return Document(title, found)


def _pages(reader: PdfReader, outline: dict[int, tuple[str, ...]]) -> Iterator[Section]:
    headings: tuple[str, ...] = ()
    for number, page in enumerate(reader.pages, 1):
        headings = outline.get(number, headings)
        text = BREAK.sub(" ", HYPHEN.sub("", page.extract_text()))
        if text.strip():
            yield Section(text, headings, f"page={number}")


def _outline(reader: PdfReader, entries: list[Any], above: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The last outline entry of each page, with those above it."""
    current = above
    for entry in entries:
        if isinstance(entry, list):
            if len(above) < DEEPEST:
                yield from _outline(reader, entry, current)
            continue
        number = reader.get_destination_page_number(entry)
        current = (*above, str(entry.title))
        if number is not None:
            yield number + 1, current
