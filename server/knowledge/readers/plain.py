"""Reads plain text, JSON lines, and the question and answer pairs of FAQ pages."""

import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from server.knowledge.passages import Document, Section
from server.knowledge.readers import html, markdown
from server.text.faq import markdown as faq_markdown
from server.text.faq import pod
from server.text.faq.blocks import Block, numberless, pairs

Filled = Annotated[str, Meta(min_length=1)]


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a JSON lines file: a text, or a question and its answer."""

    text: str = ""
    question: str = ""
    answer: str = ""
    title: str = ""
    url: str = ""
    id: str | int = ""


def read(content: str) -> Document:
    """The text, without a title; headings underlined in text files are not looked for."""
    return Document("", (Section(content),))


def json_lines(content: str) -> list[Document]:
    """One document for each line; raises ValueError naming the first line that is none."""
    found: dict[str, Document] = {}
    for number, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=Line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"line {number} is not {{text, title, url}} or {{question, answer}}: {error}") from None
        if bool(line.text) == bool(line.question and line.answer):
            raise ValueError(f"line {number} needs either `text`, or `question` and `answer`")
        asked = (line.question,) if line.question else ()
        section = Section(line.text or line.answer, asked, "", line.question)
        if line.url and not line.url.lower().startswith(("http://", "https://")):
            raise ValueError(f"line {number} has the url {line.url[:80]!r}: only http and https lead to a document")
        key = str(number) if line.id == "" else str(line.id)
        if key in found:
            raise ValueError(f"line {number} has the id {key}, which another line has")
        found[key] = Document(line.title, (section,), line.url, key)
    return list(found.values())


def faq(content: bytes, suffix: str, encoding: str = "") -> Document:
    """The question and answer pairs of a page, with the anchors of the questions in HTML; ValueError without any."""
    text = decoded(content, encoding)
    anchors: dict[str, str] = {}
    if suffix in (".md", ".markdown"):
        whole, blocks = markdown.read(text), faq_markdown.blocks(text)
        anchors = dict(_anchors(whole))
    elif suffix == ".pod":
        blocks = pod.blocks(text)
        whole = Document(next((block.text for block in blocks if block.kind), ""), ())
    else:
        whole, blocks = html.read(content, encoding), _html_blocks(text)
        anchors = dict(_anchors(whole))
    found = tuple(
        Section(pair.answer, (pair.question,), anchors.get(_key(pair.question), ""), pair.question)
        for pair in pairs(blocks)
    )
    if not found:
        raise ValueError("no question was found in it: leave out `format` to read it as a page")
    return Document(whole.title, found)


def decoded(content: bytes, encoding: str = "") -> str:
    """The text of bytes in `encoding`, else UTF-8 with or without a mark or UTF-16 with one, else Latin-1."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    for name in (encoding, "utf-8-sig"):
        try:
            if name:
                return content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("latin-1")


def _html_blocks(text: str) -> list[Block]:
    from server.text.faq import html as faq_html  # late: Beautiful Soup

    return faq_html.blocks(text)


def _anchors(document: Document) -> Iterator[tuple[str, str]]:
    """The anchor of each heading."""
    for section in document.sections:
        if section.anchor and section.headings:
            yield _key(section.headings[-1]), section.anchor


def _key(heading: str) -> str:
    return re.sub(r"\W+", "", numberless(heading)).lower()
