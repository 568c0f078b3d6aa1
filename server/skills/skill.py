"""One skill: what decides its replies, who may use it, and how much; read from one TOML file.

A value: nothing else decides what a reply is made from, and `revision` names it.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from server.config import read
from server.engine.sequence import Sampling, SamplingOptions, Temperature
from server.errors import ConfigError
from server.skills import identity, system_prompt
from server.skills.identity import Identity

ORIGIN = re.compile(r"https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
DIGEST = re.compile(r"[0-9a-f]{64}")
SITE_KEY = re.compile(r"pk_[A-Za-z0-9_-]{8,64}")
EVERY_ORIGIN = "*"
PORTS = {"http": "80", "https": "443"}  # those that a browser leaves out of an origin

Count = Annotated[int, Meta(ge=1)]
Line = Annotated[str, Meta(min_length=1, max_length=200)]


class Example(Struct, frozen=True, forbid_unknown_fields=True):
    """A question and how the skill is to answer it."""

    question: Annotated[str, Meta(min_length=1)]
    answer: Annotated[str, Meta(min_length=1)]


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that replies may be read up in."""

    title: Line
    url: Annotated[str, Meta(max_length=2000)]
    words: tuple[Line, ...] = ()
    """It is shown below replies that have one of these words, in any case; without words, below every reply."""

    def cited(self, text: str) -> bool:
        """Whether a reply of this text is shown with the source."""
        return not self.words or any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.I) for w in self.words)


class Skill(SamplingOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One TOML file: a system prompt, its limits, and who may use it."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    title: str = ""
    """What the widget shows; the name if empty."""
    greeting: str = ""
    starters: Annotated[tuple[Line, ...], Meta(max_length=6)] = ()
    """Questions that the widget offers."""
    model: str = ""
    """The model that answers, a directory or `registry:NAME@production`; left out, the server's own."""
    system: str = ""
    """Comes first in every conversation; callers cannot remove it. A template: system_prompt.py names its variables."""
    system_file: str = ""
    """A file that holds it instead, in the folder of the skill's file or below it."""
    examples: tuple[Example, ...] = ()
    """Turns that every conversation begins with; small models follow them far better than instructions."""
    sources: tuple[Source, ...] = ()
    """What replies may be read up in."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may embed the widget: scheme://host[:port]; `*` lets every page in."""
    site_keys: tuple[str, ...] = ()
    """Public keys of which the widget's line must name one (`data-key`); with none, it needs none."""
    image_origins: tuple[str, ...] = ()
    """Origins from which the widget may show images that a reply names; all others are shown as links."""
    identity: Identity | None = None
    """How visitors prove who they are; without it they are nobody."""
    keys: tuple[str, ...] = ()
    """SHA-256 of API keys in hexadecimal, beside those of `secateur keys`."""
    max_tokens: Count = 256
    """The longest reply unless a caller asks for another; without `tokens_per_reply` none is longer."""
    tokens_per_reply: Count | None = None
    """No reply is longer; up to it, callers may ask for another `max_tokens`."""
    tokens_per_minute: Count | None = None
    """Prompt and the longest possible reply, counted when a request is let in; more are answered 429."""
    tokens_per_day: Count | None = None
    """Prompts and replies together, UTC; a reply that reaches it ends there, and later ones are answered 429."""
    tokens_per_month: Count | None = None
    requests_per_minute: Count | None = None
    concurrent_replies: Count | None = None
    visitor_requests_per_minute: Count = 20
    """Messages of one widget conversation."""
    address_requests_per_minute: Count = 120
    """Messages of all widget conversations from one address: a program opens as many as it likes."""
    sessions_per_minute: Count = 60
    """Widget sessions from one address."""
    temperature: Temperature = 0.7
    max_temperature: Temperature = 2.0
    """The highest that callers may ask for."""
    logprobs: bool = True
    """Whether callers who have a key may ask for the probabilities of tokens; a page's visitors never can."""
    history_turns: Annotated[int, Meta(ge=0, le=200)] = 12
    """How many earlier turns of a widget conversation are kept and sent to the model."""
    history_tokens: Annotated[int, Meta(ge=0)] = 1024
    """And how many tokens of them are sent, the latest first."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The skill in the TOML file `path`, with the files that it names; raises ConfigError naming the field."""
        skill = read(path, cls)
        if skill.system_file:
            skill = msgspec.structs.replace(skill, system=_system(path, skill), system_file="")
        if skill.identity is not None:
            key = identity.read_key(path, skill.identity)
            found = msgspec.structs.replace(skill.identity, key=key, key_file="")
            skill = msgspec.structs.replace(skill, identity=found)
        check(str(path), skill)
        return skill

    @property
    def ceiling(self) -> int:
        """The most tokens that any reply has."""
        return self.tokens_per_reply or self.max_tokens

    @property
    def revision(self) -> str:
        """Twelve hexadecimal digits that change with anything in the file but who may use it; the ledger notes it."""
        said = self.merged_over(Sampling())
        said = msgspec.structs.replace(said, keys=(), site_keys=(), origins=(), identity=None)
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:12]

    def admits(self, origin: str | None) -> bool:
        """Whether pages of `origin` may embed the widget."""
        return bool(origin) and origin != "null" and (origin in self.origins or EVERY_ORIGIN in self.origins)


def check(where: str, skill: Skill) -> None:
    """What a type cannot say about a skill; raises ConfigError, which begins with `where`."""
    for problem in _problems(skill):
        raise ConfigError(f"{where}: {problem}")
    if skill.identity is not None:
        identity.check(where, skill.identity)
    system_prompt.check(where, skill.system)


def _problems(skill: Skill) -> Iterator[str]:
    """What is wrong with a skill's lists and numbers, one sentence each."""
    yield from _origin_problems("origins", skill.origins, allowed=EVERY_ORIGIN)
    yield from _origin_problems("image_origins", skill.image_origins)
    for index, known in enumerate(skill.keys):
        if not DIGEST.fullmatch(known):
            yield f"`$.keys[{index}]` is no SHA-256 in hexadecimal; `secateur keys create` makes keys"
    for index, key in enumerate(skill.site_keys):
        if not SITE_KEY.fullmatch(key):
            yield f"`$.site_keys[{index}]` is no site key; `secateur keys site` prints one"
    for index, source in enumerate(skill.sources):
        if urlsplit(source.url).scheme not in ("http", "https") or not urlsplit(source.url).hostname:
            yield f"`$.sources[{index}].url` must begin with http:// or https:// and name a host"
    if skill.temperature > skill.max_temperature:
        yield "`$.temperature` is above `$.max_temperature`"


def _origin_problems(field: str, origins: Sequence[str], allowed: str = "") -> Iterator[str]:
    for index, origin in enumerate(origins):
        if origin == allowed:
            continue
        if not ORIGIN.fullmatch(origin):
            yield (
                f"{origin!r} at `$.{field}[{index}]` is no origin; write scheme://host or scheme://host:port, "
                "in lower case, without a path, and a name of other letters as xn--..."
            )
        elif (sent := _as_browsers_send(origin)) != origin:
            yield f"{origin!r} at `$.{field}[{index}]` is what no browser sends; write {sent!r}"


def _as_browsers_send(origin: str) -> str:
    """The origin without the port that its scheme means anyway, and an IPv6 address in its shortest form."""
    scheme, _, rest = origin.partition("://")
    host, port = rest, ""
    if found := re.fullmatch(r"(.*?):([0-9]+)", rest.rpartition("]")[2]):
        host, port = rest.removesuffix(f":{found[2]}"), str(min(int(found[2]), 65535))
    if host.startswith("["):
        with suppress(ValueError):
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    return f"{scheme}://{host}" + (f":{port}" if port and port != PORTS[scheme] else "")


def _system(path: Path, skill: Skill) -> str:
    if skill.system:
        raise ConfigError(f"{path}: both `$.system` and `$.system_file` are there; give one of them")
    file = path.parent / skill.system_file
    # A prompt may be told to whoever asks for it: a link or a path must not lead to what was never meant as one.
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ConfigError(f"{path}: `$.system_file` leads out of the folder {path.parent}; put the prompt there")
    try:
        if not file.is_file():  # a pipe would be waited for
            raise OSError
        with file.open(encoding="utf-8") as opened:
            text = opened.read(system_prompt.LONGEST + 1)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: {file} at `$.system_file` cannot be read as text") from None
    return text
