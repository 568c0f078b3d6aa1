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


class Listing(Struct, frozen=True):
    """What a source has."""

    items: list[Item]
    failed: dict[str, str]
    """Documents that cannot be read, and why."""
