"""Sources: they list documents, and hand out the bytes of the ones that changed."""

from collections.abc import Callable

from msgspec import Struct

from server.knowledge.settings import Source


class Refused(Exception):
    """A document that cannot be fetched; the text says why."""


class Gone(Refused):
    """A document that no longer exists."""


class Status(Refused):
    """A page that the server answers with an unexpected status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answers with status {status}")
        self.status = status


class Content(Struct, frozen=True):
    """The bytes of a document."""

    data: bytes
    stamp: str
    """What to compare next time."""
    content_type: str = ""
    encoding: str = ""


class Item(Struct, frozen=True):
    """A document of a source."""

    name: str
    """Its path or URL: its identity within the knowledge."""
    url: str
    source: Source
    fetch: Callable[[str], Content | None]
    """The content, or None if its stamp shows that it has not changed since; raises Refused."""


def left_out(source: Source, documents: int) -> dict[str, str]:
    """The failure of a source with more `documents` than are read, by the source's name."""
    if documents <= source.most_documents:
        return {}
    return {source.name: f"it has {documents} documents, of which {source.most_documents} are read (`most_documents`)"}


class Listing(Struct, frozen=True):
    """What a source has."""

    items: list[Item]
    failed: dict[str, str]
    """Documents that cannot be read, and why."""
