"""Lists the documents of all sources, each name once."""

from collections.abc import Iterable
from pathlib import Path

from server.knowledge.settings import Settings
from server.knowledge.sources import Item, Listing, local


def listings(settings: Settings, folder: Path, known: object = None) -> Listing:
    """Every document of every source, in the order of the sources; a name that two sources have is the first's."""
    items: dict[str, Item] = {}
    failed: dict[str, str] = {}
    for source in settings.sources:
        found = local.listing(source, folder, settings.document_megabytes << 20)
        _add(items, found.items)
        failed |= found.failed
    return Listing(list(items.values()), failed)


def _add(items: dict[str, Item], found: Iterable[Item]) -> None:
    for item in found:
        items.setdefault(item.name, item)
