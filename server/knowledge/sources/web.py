"""Pages of a sitemap or a list of URLs, as robots.txt allows, asked anew only if they changed (ETag, Last-Modified)."""

import fnmatch
import ipaddress
from collections.abc import Iterator
from email.message import Message
from functools import partial
from importlib.metadata import version
from urllib.parse import urldefrag, urlunsplit

from server.errors import KnowledgeError
from server.knowledge.passages import Document
from server.knowledge.readers.process import Reading, Unreadable
from server.knowledge.readers.sitemap import SITEMAPS
from server.knowledge.settings import Settings, Source
from server.knowledge.sources import Content, Gone, Item, Listing, Refused, Status, left_out, robots
from server.knowledge.sources.addresses import check_host, host_of, parsed
from server.knowledge.sources.client import Client, Limits
from server.knowledge.sources.robots import Rules

MOST_SITEMAPS, MOST_PAGES = 200, 1_000_000
"""Sitemaps that an index may lead to, and pages of all of them."""


class Site:
    """A source's pages, asked through one client."""

    def __init__(self, source: Source, settings: Settings) -> None:
        named = (source.sitemap,) if source.sitemap else source.urls
        contact = f"; +{settings.contact}" if settings.contact else ""
        self._source = source
        self._limits = Limits(
            hosts=source.hosts or tuple(dict.fromkeys(host_of(parsed(url)) for url in named)),
            private=[ipaddress.ip_network(one, strict=False) for one in source.private_addresses],
            requests_a_second=source.requests_a_second,
            largest=settings.document_megabytes << 20,
            agent=f"{robots.AGENT}/{version('secateur')} (knowledge{contact})",
        )
        self._client = Client(self._limits)
        self._rules: dict[str, Rules] = {}

    def listing(self, reading: Reading) -> Listing:
        """The pages; raises KnowledgeError if the sitemap cannot be read, so that no page counts as gone."""
        found = [url for url in dict.fromkeys(urldefrag(url)[0] for url in self._urls(reading)) if self._wanted(url)]
        taken = found[: self._source.most_documents]
        items = [Item(url, url, self._source, partial(self.fetch, url)) for url in taken]
        return Listing(items, left_out(self._source, len(found)))

    def fetch(self, url: str, stamp: str = "") -> Content | None:
        """A page, or None if the server says that it has not changed since `stamp`; raises Refused."""
        rules = self._permitted(url)
        etag, _, modified = stamp.partition("\n")
        asked = {"If-None-Match": etag, "If-Modified-Since": modified}
        headers = {name: value for name, value in asked.items() if value}
        answer = self._client.get(url, headers, delay=rules.delay, redirected=self._permitted)
        if answer.status == 304:
            return None
        told = Message()
        told["Content-Type"] = answer.headers.get("content-type", "")
        tags = (answer.headers.get("etag", ""), answer.headers.get("last-modified", ""))
        kind = told.get_content_type() if told["Content-Type"] else ""
        return Content(answer.body, "\n".join(tags) if any(tags) else "", kind, told.get_content_charset() or "")

    def _urls(self, reading: Reading) -> Iterator[str]:
        if not self._source.sitemap:
            yield from sorted(self._source.urls)
            return
        waiting, seen = [self._source.sitemap], {self._source.sitemap}
        pages: set[str] = set()
        while waiting:
            sitemap = waiting.pop()
            for document in self._read_sitemap(sitemap, reading):
                if document.key != SITEMAPS:
                    pages.add(document.url)
                elif document.url not in seen:
                    seen.add(document.url)
                    waiting.append(document.url)
            if len(seen) > MOST_SITEMAPS or len(pages) > MOST_PAGES:
                raise KnowledgeError(
                    f"{self._source.sitemap} leads to more than {MOST_SITEMAPS} sitemaps or {MOST_PAGES} pages"
                )
        yield from sorted(pages)

    def _read_sitemap(self, url: str, reading: Reading) -> list[Document]:
        try:
            content = self.fetch(url)
            return list(reading.read(content.data, "sitemap", url)) if content is not None else []
        except (Refused, Unreadable) as error:
            raise KnowledgeError(f"the sitemap {url} cannot be read: {error}; nothing was changed") from None

    def _wanted(self, url: str) -> bool:
        taken = self._source.include or ("*",)
        return any(fnmatch.fnmatch(url, pattern) for pattern in taken) and not any(
            fnmatch.fnmatch(url, pattern) for pattern in self._source.exclude
        )

    def _permitted(self, url: str) -> Rules:
        """The rules of the URL's host; raises Refused if they forbid it, or if its host is not among the source's."""
        parts = parsed(url)
        check_host(parts, self._limits.hosts)
        rules = self._rules_for(url)
        if not rules.allows(urlunsplit(("", "", parts.path or "/", parts.query, ""))):
            raise Refused("robots.txt forbids it")
        return rules

    def _rules_for(self, url: str) -> Rules:
        """The rules of the URL's host, read once; a robots.txt that cannot be read forbids everything (RFC 9309)."""
        parts = parsed(url)
        origin = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        if origin not in self._rules:
            try:
                self._rules[origin] = robots.parse(self._client.get(f"{origin}/robots.txt").body)
            except Gone:
                self._rules[origin] = robots.ALL
            except Refused as error:
                if not isinstance(error, Status) or error.status >= 500 or error.status == 429:
                    raise Refused(f"robots.txt of {host_of(parts)} cannot be read: {error}") from None
                self._rules[origin] = robots.ALL
        return self._rules[origin]
