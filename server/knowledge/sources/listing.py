"""Lists the documents of all sources, each name once."""

from collections.abc import Iterable
from pathlib import Path

from server.errors import ConfigError
from server.knowledge.readers.process import Reading
from server.knowledge.settings import Settings
from server.knowledge.sources import Item, Listing, Refused, local
from server.knowledge.sources.web import Site


def listings(settings: Settings, folder: Path, reading: Reading) -> Listing:
    """Every document of every source, in the order of the sources; a name that two sources have is the first's.

    Raises ConfigError for a source that does not exist, KnowledgeError for a sitemap that cannot be read.
    """
    items: dict[str, Item] = {}
    failed: dict[str, str] = {}
    for source in settings.sources:
        if source.path:
            found = local.listing(source, folder, settings.document_megabytes << 20)
        else:
            try:
                found = Site(source, settings).listing(reading)
            except Refused as error:
                raise ConfigError(f"the source {source.name}: {error}") from None
        _add(items, found.items)
        failed |= found.failed
    return Listing(list(items.values()), failed)


def _add(items: dict[str, Item], found: Iterable[Item]) -> None:
    for item in found:
        items.setdefault(item.name, item)
