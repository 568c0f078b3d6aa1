"""Reads the documents that changed since the last build, and lists unreadable ones with their reasons."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import Struct

from server.knowledge.build.journal import Journal, Known, Part
from server.knowledge.index.schema import Entry
from server.knowledge.passages import Document, passages
from server.knowledge.readers.formats import SUFFIXES, format_of
from server.knowledge.readers.process import Reading, Unreadable
from server.knowledge.record import Failure
from server.knowledge.settings import Settings
from server.knowledge.sources import Content, Gone, Item, Refused


class Counts(Struct):
    """What happened to the documents of a build."""

    read: int = 0
    unchanged: int = 0
    gone: int = 0


def read_all(
    items: Sequence[Item], settings: Settings, journal: Journal, reading: Reading, finished: Callable[[], None]
) -> Counts:
    """Bring the journal up to date with `items`, one commit for each; `finished` is called after each."""
    counts = Counts()
    for item in items:
        known, options = journal.known(item.name), _options(item, settings)
        found = _read(item, settings, reading, known, same=known is not None and known.options == options)
        if found is None:
            journal.remember(item.name, Known("", options, "", ()))
        elif found is not known:
            journal.remember(item.name, msgspec.structs.replace(found, options=options))
        counts.unchanged += found is known
        counts.read += found is not known
        finished()
    counts.gone = len(journal.forget_others(item.name for item in items))
    return counts


def entries(items: Sequence[Item], settings: Settings, journal: Journal) -> Iterator[Entry]:
    """The documents to index, as the journal has them, in the order of `items`."""
    for item in items:
        known = journal.known(item.name)
        for part in known.parts if known is not None else ():
            source = item.source
            yield Entry(
                name=f"{item.name}#{part.key}" if part.key else item.name,
                url=part.url,
                title=part.title,
                digest=known.digest if known is not None else "",
                language=source.language or settings.language,
                groups=tuple(sorted(set(source.groups))),
                passages=part.passages,
            )


def failures(items: Sequence[Item], journal: Journal) -> Iterator[Failure]:
    """The documents whose latest content could not be read."""
    for item in items:
        known = journal.known(item.name)
        if known is not None and known.failure:
            yield Failure(item.name, known.failure, bool(known.parts))


def _read(item: Item, settings: Settings, reading: Reading, known: Known | None, *, same: bool) -> Known | None:
    """The document as it is now; `known` itself if it has not changed. `same`: it was read with these settings."""
    before = known.parts if known is not None else ()
    content = None
    try:
        content = item.fetch(known.stamp if known is not None and same else "")
        if content is None:
            return known
        digest = hashlib.sha256(content.data).hexdigest()
        if known is not None and same and known.digest == digest and not known.failure:
            return msgspec.structs.replace(known, stamp=content.stamp)
        return Known(content.stamp, "", digest, _parts(item, content, settings, reading))
    except Gone as error:
        return Known("", "", "", (), str(error))
    except Unreadable as error:
        return Known(content.stamp if content else "", "", "", (), str(error))
    except Refused as error:
        return Known("", "", known.digest if known is not None else "", before, str(error))


def _parts(item: Item, content: Content, settings: Settings, reading: Reading) -> tuple[Part, ...]:
    """The passages of a document's content; raises Unreadable."""
    kind = format_of(item.name, content.content_type, item.source.format)
    if not kind:
        raise Unreadable(f"its format is not known: {', '.join(SUFFIXES)} are, or name one by `format`")
    found = reading.read(content.data, kind, item.name, content.encoding)
    return tuple(_part(document, item, settings) for document in found)


def _part(document: Document, item: Item, settings: Settings) -> Part:
    if not document.title:
        document = msgspec.structs.replace(document, title=item.source.title)
    url = document.url or item.url
    return Part(document.key, document.title, url, tuple(passages(document, url, settings.passage_characters)))


def _options(item: Item, settings: Settings) -> str:
    """Digest of the settings that decide what becomes of a document."""
    told = (item.url, item.source.format, item.source.title, settings.passage_characters, settings.document_seconds)
    return hashlib.sha256(msgspec.json.encode((*told, settings.reader_megabytes))).hexdigest()
