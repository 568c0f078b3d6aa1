"""Reads DOCX through mammoth, which makes HTML of it; no picture, link or file outside of it is opened."""

from io import BytesIO
from typing import Any
from zipfile import BadZipFile, ZipFile

import mammoth
from lxml.html import document_fromstring

from server.knowledge.passages import Document
from server.knowledge.readers import html
from server.knowledge.readers.marks import sections, title_of

LARGEST = 256 << 20
"""Bytes of all parts, uncompressed."""
MOST_PARTS = 5000
STYLES = "p[style-name='Title'] => h1:fresh\np.Title => h1:fresh\np[style-name='Subtitle'] => p:fresh"


def read(content: bytes) -> Document:
    """The document's title and sections; raises ValueError if it is no DOCX or would be too large unpacked."""
    _check(content)
    try:
        made = mammoth.convert_to_html(BytesIO(content), convert_image=_no_image, style_map=STYLES).value
    except (BadZipFile, KeyError, ValueError, AttributeError, OSError) as error:
        raise ValueError(f"it cannot be read as DOCX: {error}") from None
    if not made.strip():
        raise ValueError("it has no text")
    found = html.marks(document_fromstring(f"<html><body>{made}</body></html>"))
    title = title_of(found)
    return Document(title, sections(found, title))


def _check(content: bytes) -> None:
    try:
        with ZipFile(BytesIO(content)) as parts:
            sizes = [part.file_size for part in parts.infolist()]
    except BadZipFile as error:
        raise ValueError(f"it is not DOCX: {error}") from None
    if len(sizes) > MOST_PARTS or sum(sizes) > LARGEST:
        raise ValueError(f"it would unpack to {sum(sizes) >> 20} MB in {len(sizes)} parts")


def _no_image(_: Any) -> list[Any]:
    """No element for any picture."""
    return []
