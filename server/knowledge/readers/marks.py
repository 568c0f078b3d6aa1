"""A page as a run of headings and paragraphs, and the sections that they make."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from server.knowledge.passages import Section


class Mark(Struct, frozen=True):
    """A heading, whose level is 1 or more with 1 the highest, or a paragraph of level 0."""

    text: str
    level: int = 0
    anchor: str = ""
    """The fragment that leads to a heading."""


def sections(marks: Iterable[Mark], title: str = "") -> tuple[Section, ...]:
    """One section for each run of paragraphs, below all headings in force; `title` is not repeated among them."""
    found: list[Section] = []
    above: list[Mark] = []
    text: list[str] = []

    def close() -> None:
        if text:
            headings = tuple(mark.text for mark in above if mark.text != title)
            anchor = next((mark.anchor for mark in reversed(above) if mark.anchor), "")
            found.append(Section("\n\n".join(text), headings, anchor))
            text.clear()

    for mark in marks:
        if not mark.level:
            text.append(mark.text)
            continue
        close()
        while above and above[-1].level >= mark.level:
            above.pop()
        above.append(mark)
    close()
    return tuple(found)


def title_of(marks: Sequence[Mark], otherwise: str = "") -> str:
    """The text of the first heading of level 1, else `otherwise`, else the first heading."""
    first = next((mark.text for mark in marks if mark.level == 1), "")
    return first or otherwise or next((mark.text for mark in marks if mark.level), "")
