"""Reads an HTML page as blocks: headings, definition terms, bold paragraphs and text, without navigation."""

from collections.abc import Iterator
from warnings import catch_warnings

from bs4 import BeautifulSoup, Tag, XMLParsedAsHTMLWarning
from bs4.element import NavigableString, PageElement, PreformattedString

from server.text.faq.blocks import Block

LEFT_OUT = {"script", "style", "nav", "header", "footer", "aside", "form", "template", "svg", "head"}
CLASSES = {
    "toc", "mini-toc", "contents", "sphinxsidebar", "related", "navheader", "navfooter", "nav-panel", "headerlink",
    "permalink", "copiable-link", "copiable-anchor", "footer", "toplang", "bottomlang", "footnote",
}  # fmt: skip
"""Classes of navigation and of heading links in Sphinx, DocBook, Texinfo and Apache's manual."""
HEADINGS = {f"h{level}": level for level in range(1, 7)}
TERM_LEVEL = 7
INLINE = {
    "a", "abbr", "acronym", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "img", "wbr",
}  # fmt: skip


def blocks(page: str) -> list[Block]:
    """The blocks of the page in reading order."""
    with catch_warnings(action="ignore", category=XMLParsedAsHTMLWarning):  # XHTML is read as well
        soup = BeautifulSoup(page, "lxml")  # closes open tags as browsers do
    return list(_Reader().read(soup.body or soup))


class _Reader:
    """Walks the tree and gathers running text until a block ends."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._depth = 0  # of definition lists

    def read(self, node: Tag) -> Iterator[Block]:
        """All blocks within `node`."""
        yield from self._children(node)
        yield from self._flush()

    def _children(self, node: Tag) -> Iterator[Block]:
        for child in node.children:
            yield from self._element(child)

    def _element(self, child: PageElement) -> Iterator[Block]:
        if isinstance(child, NavigableString):
            if not isinstance(child, PreformattedString):  # comments and the like
                self._text.append(child)
        elif isinstance(child, Tag) and not _left_out(child):
            if child.name in INLINE:
                yield from self._children(child)
            elif child.name == "br":
                self._text.append("\n")
            else:
                yield from self._flush()
                yield from self._block(child)
                yield from self._flush()

    def _block(self, tag: Tag) -> Iterator[Block]:
        """The blocks of one block-level element."""
        if tag.name in HEADINGS:
            yield Block(_line(tag), tag.name, HEADINGS[tag.name])
        elif tag.name == "dl":
            self._depth += 1
            yield from self.read(tag)
            yield Block("", "end of list", TERM_LEVEL + self._depth)
            self._depth -= 1
        elif tag.name == "dt":
            yield Block(_line(tag), f"dt {self._depth}", TERM_LEVEL + self._depth)
        elif tag.name == "pre":
            yield Block(tag.get_text().strip("\n"))
        elif _is_bold(tag):
            yield Block(_line(tag), "bold", TERM_LEVEL)
        else:
            yield from self.read(tag)

    def _flush(self) -> Iterator[Block]:
        """The running text gathered so far, as a paragraph."""
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if text:
            yield Block(text)


def _left_out(tag: Tag) -> bool:
    """Whether `tag` and everything in it is navigation, not text."""
    return tag.name in LEFT_OUT or not CLASSES.isdisjoint(tag.get_attribute_list("class"))


def _is_bold(tag: Tag) -> bool:
    """Whether `tag` is a paragraph that holds a single bold element."""
    if tag.name != "p":
        return False
    inner = [child for child in tag.children if not (isinstance(child, NavigableString) and not child.strip())]
    return len(inner) == 1 and isinstance(inner[0], Tag) and inner[0].name in ("b", "strong")


def _line(tag: Tag) -> str:
    """The text of a heading, without its link sign."""
    parts = [text for text in tag.strings if not any(_left_out(up) for up in _between(text, tag))]
    return " ".join("".join(parts).split())


def _between(text: NavigableString, tag: Tag) -> Iterator[Tag]:
    """The elements between `text` and its ancestor `tag`."""
    for parent in text.parents:
        if parent is tag:
            return
        yield parent
