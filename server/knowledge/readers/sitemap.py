"""Reads a sitemap or an index of sitemaps (sitemaps.org), also compressed by gzip; entities are not expanded."""

import gzip
import zlib
from collections.abc import Iterator
from io import BytesIO

from lxml import etree

from server.knowledge.passages import Document

LARGEST = 50_000_000
"""Bytes of a sitemap, uncompressed, as the protocol allows."""
MOST_URLS = 50_000
"""URLs of one sitemap, as the protocol allows."""
PAGES, SITEMAPS = "pages", "sitemaps"


def read(content: bytes) -> Iterator[Document]:
    """A document for each address, whose key is `pages` or `sitemaps`; raises ValueError if it is no sitemap."""
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(content)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"it is not XML: {error}") from None
    kinds = {"urlset": PAGES, "sitemapindex": SITEMAPS}
    name = etree.QName(root).localname
    if name not in kinds:
        raise ValueError(f"it is a {name}, not a sitemap: its root must be urlset or sitemapindex")
    places = [place.text.strip() for place in root.iterfind("{*}*/{*}loc") if place.text and place.text.strip()]
    if len(places) > MOST_URLS:
        raise ValueError(f"it has {len(places)} addresses, more than {MOST_URLS}")
    for place in places:
        yield Document("", (), place, kinds[name])


def _unpacked(content: bytes) -> bytes:
    try:
        with gzip.open(BytesIO(content)) as file:
            unpacked = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it cannot be unpacked: {error}") from None
    if len(unpacked) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST} bytes")
    return unpacked
