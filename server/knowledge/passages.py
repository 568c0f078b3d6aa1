"""Documents as sections, and their passages: cut at headings, each with its title, headings, anchor and URL."""

import re
from collections.abc import Iterator
from urllib.parse import quote

from msgspec import Struct

SPACE = re.compile(r"[ \t\f\v\u00a0]+")
BREAKS = re.compile(r"\n{3,}")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")

LONGEST_LINE = 300
"""Characters of a title, heading or anchor that are kept."""
FRAGMENT = "!$&'()*+,;=:@/?-._~%"
"""Characters of a URL's fragment (RFC 3986) beside letters and digits; others are percent-encoded."""


class Section(Struct, frozen=True, omit_defaults=True):
    """A piece of a document below one heading."""

    text: str
    headings: tuple[str, ...] = ()
    """The heading and those above it, highest first, without the document's title."""
    anchor: str = ""
    """The fragment of the URL at which the section begins, without `#`."""
    question: str = ""
    """The question that `text` answers, where the section is a question and its answer."""


class Document(Struct, frozen=True, omit_defaults=True):
    """What a reader makes of a file or page."""

    title: str
    sections: tuple[Section, ...]
    url: str = ""
    """The document's own URL, where its content names one."""
    key: str = ""
    """Its identity within its file, where a file has several."""


class Passage(Struct, frozen=True, omit_defaults=True):
    """A piece of text that is found and quoted as a whole."""

    text: str
    title: str
    url: str
    """The document's URL, with the anchor of the section."""
    headings: tuple[str, ...] = ()
    question: str = ""
    """The stored question whose whole answer `text` is; empty for any other passage."""

    @property
    def heading(self) -> str:
        """The headings in one line, highest first."""
        return " > ".join(self.headings)

    @property
    def whole(self) -> str:
        """Title, headings and text, as they are encoded and shown to a model."""
        above = [self.title, *(heading for heading in self.headings if heading != self.title)]
        return "\n".join([*filter(None, above), self.text])


def passages(document: Document, url: str, longest: int) -> Iterator[Passage]:
    """The passages of a document whose URL is `url`, each of at most `longest` characters."""
    title = line(document.title)
    for section in document.sections:
        text = clean(section.text)
        if not re.search(r"\w", text):
            continue
        headings = tuple(filter(None, map(line, section.headings)))
        where = (
            f"{url.partition('#')[0]}#{quote(section.anchor[:LONGEST_LINE], safe=FRAGMENT)}" if section.anchor else url
        )
        pieces = [text] if len(text) <= longest else _cut(text, longest)
        question = line(section.question or (headings[-1] if headings and headings[-1].endswith("?") else ""))
        for piece in pieces:
            yield Passage(piece, title, where, headings, question if len(pieces) == 1 else "")


def clean(text: str) -> str:
    """Text without control characters, lone surrogates, and runs of blanks or empty lines."""
    text = CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    indented = ("    ", "\t")  # code
    lines = [line if line.startswith(indented) else SPACE.sub(" ", line) for line in map(str.rstrip, text.split("\n"))]
    return BREAKS.sub("\n\n", "\n".join(lines)).strip("\n")


def line(text: str) -> str:
    """Text on one line of at most LONGEST_LINE characters, without control characters."""
    whole = " ".join(CONTROL.sub("", text).split())
    return whole if len(whole) <= LONGEST_LINE else f"{whole[: LONGEST_LINE - 1]}…"


def _cut(text: str, longest: int) -> list[str]:
    """Cut between paragraphs where that is possible, else between sentences or words."""
    from semantic_text_splitter import TextSplitter  # late: the extra `knowledge`

    return [piece for piece in TextSplitter((longest // 2, longest)).chunks(text) if re.search(r"\w", piece)]


def is_link(url: str) -> bool:
    """Whether `url` can be followed in a browser: it is http or https, and has no blanks or angle brackets."""
    return url.startswith(("http://", "https://")) and not set(url) & set(" <>\n")
