"""Reads HTML: headings with their anchors, paragraphs, lists and tables of the main text, without navigation.

trafilatura (Barbaresi 2021) decides which sections are the page's main text; it drops headings of many pages and all
anchors, so these come from the page's own tree.
"""

import re
from collections.abc import Iterator

import trafilatura
from lxml import etree
from lxml.html import HtmlElement, HTMLParser, document_fromstring

from server.knowledge.passages import Document, Section
from server.knowledge.readers.marks import Mark, sections, title_of

LEFT_OUT = {
    "script", "style", "nav", "header", "footer", "aside", "form", "template", "svg", "head", "noscript", "iframe",
    "button", "select", "dialog", "object", "math",
}  # fmt: skip
MAIN = ("main", "article")
"""Elements within which `header` and `aside` belong to the text."""
CLASSES = {
    "toc", "mini-toc", "contents", "sphinxsidebar", "related", "navheader", "navfooter", "nav-panel", "headerlink",
    "permalink", "copiable-link", "copiable-anchor", "footer", "toplang", "bottomlang", "footnote", "breadcrumb",
    "breadcrumbs", "sidebar", "cookie", "cookie-banner", "skip-link", "menu",
}  # fmt: skip
"""Classes of navigation and of heading links."""
HEADINGS = {f"h{level}": level for level in range(1, 7)}
TERM = 7
"""Level of a definition's term that has an anchor."""
INLINE = {
    "a", "abbr", "acronym", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "img", "wbr", "label",
}  # fmt: skip
WRAPPERS = {"section", "div", "article", "a", "span", "li", "dl"}
"""Elements whose id leads to the heading that begins them."""
MAIN_SHARE = 0.5
"""Share of a section's words that trafilatura must have kept for the section to be main text."""


def read(content: bytes, encoding: str = "") -> Document:
    """The page's title and sections; raises ValueError if it is not HTML."""
    if not content.strip():
        raise ValueError("it is empty")
    try:
        root = document_fromstring(content, parser=HTMLParser(encoding=encoding or None, huge_tree=False))
    except etree.ParserError as error:
        raise ValueError(f"it is not HTML: {error}") from None
    named = " ".join((root.findtext(".//title") or "").split())
    found = marks(root)
    title = title_of(found, named)
    kept = _main(sections(found, title), content)
    return Document(title, kept)


def marks(root: HtmlElement) -> list[Mark]:
    """The headings and paragraphs of a tree in reading order."""
    return list(_Walk().read(root))


class _Walk:
    """Walks the tree without recursion, and gathers running text until a block ends."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._anchor = ""
        """The id of an element that began and has no text yet."""
        self._heading: tuple[etree._Element, int, str] | None = None
        self._verbatim = 0
        self._main = 0

    def read(self, root: HtmlElement) -> Iterator[Mark]:
        """All marks below `root`."""
        walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
        for event, element in walk:
            if event in ("comment", "pi"):
                self._add(element.tail)
            elif event == "start" and self._left_out(element):
                walk.skip_subtree()
            elif event == "start":
                yield from self._start(element)
            elif not self._left_out(element):
                yield from self._end(element)
                self._add(element.tail)
            else:
                self._add(element.tail)
        yield from self._flush()

    def _start(self, element: etree._Element) -> Iterator[Mark]:
        tag = str(element.tag)
        self._main += tag in MAIN
        id = element.get("id") or (element.get("name") if tag == "a" else None) or ""
        heading = self._heading is None and (tag in HEADINGS or (tag == "dt" and bool(id)))
        if heading:
            yield from self._flush()
            self._heading = (element, HEADINGS.get(tag, TERM), id or self._anchor)
            self._anchor = ""
        elif self._heading is not None:
            where, level, anchor = self._heading
            self._heading = (where, level, anchor or id)
        elif id and tag in WRAPPERS:
            self._anchor = id
        if tag not in INLINE and not heading and self._heading is None:
            yield from self._flush()
            self._verbatim += tag == "pre"
            if tag == "li":
                self._text.append("- ")
        if tag in ("td", "th") and self._text:
            self._text.append(" | ")
        self._add(element.text)

    def _end(self, element: etree._Element) -> Iterator[Mark]:
        tag = str(element.tag)
        self._main -= tag in MAIN
        if tag == "br":
            self._text.append("\n")
        if self._heading is not None and self._heading[0] is element:
            text, (_, level, anchor) = " ".join("".join(self._text).split()), self._heading
            self._text, self._heading = [], None
            if text:
                yield Mark(text.rstrip("¶#").strip(), level, anchor)
        elif tag not in INLINE and tag not in ("td", "th") and self._heading is None:
            yield from self._flush()
            self._verbatim -= tag == "pre"

    def _add(self, text: str | None) -> None:
        if text:
            self._text.append(text)
            if self._anchor and text.strip() and self._heading is None:
                self._anchor = ""

    def _flush(self) -> Iterator[Mark]:
        """The running text as a paragraph."""
        text = "".join(self._text)
        self._text = []
        if self._heading is not None:
            self._text = [text]
            return
        text = text.strip("\n") if self._verbatim else " ".join(text.split())
        if re.search(r"\w", text):
            yield Mark(text)

    def _left_out(self, element: etree._Element) -> bool:
        """Whether the element and all below it is no text of the page."""
        tag = str(element.tag)
        if tag in LEFT_OUT and not (self._main and tag in ("header", "aside")):
            return True
        hidden = element.get("hidden") is not None or element.get("aria-hidden") == "true"
        return hidden or not CLASSES.isdisjoint((element.get("class") or "").split())


def _main(found: tuple[Section, ...], content: bytes) -> tuple[Section, ...]:
    """The sections that trafilatura takes for main text; all of them where it takes none."""
    extracted = trafilatura.extract(content, favor_recall=True, include_comments=False, include_tables=True) or ""
    words = set(re.findall(r"\w+", extracted.lower()))
    kept = tuple(one for one in found if _share(one.text, words) >= MAIN_SHARE)
    return kept if kept and sum(len(one.text) for one in kept) * 4 >= len(extracted) else found


def _share(text: str, words: set[str]) -> float:
    """The share of the words of `text` that are among `words`."""
    own = re.findall(r"\w+", text.lower())
    return sum(word in words for word in own) / len(own) if own else 0.0
