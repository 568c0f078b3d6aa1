"""A skill: prompt, sampling, limits and access, read from one TOML file.

It is a value: nothing else shapes a reply but the model and the conversation, and `revision` identifies it.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from server.engine.sequence import Sampling, SamplingOptions, Temperature
from server.errors import ConfigError
from server.skills import identity, system_prompt
from server.skills.handover import Handover, handover_problems
from server.skills.identity import Identity
from server.skills.origins import origin_problems
from server.skills.revisions.trials import Experiment, Gate
from server.storage.toml import read

DIGEST = re.compile(r"[0-9a-f]{64}")
LATER = frozenset(
    {"answers", "encoder", "repetition_penalty", "min_tokens", "tools", "knowledge", "knowledge_tokens", "refusal"}
)
"""Fields that the first release lacked: at their defaults they do not change a revision."""
OUTSIDE = (
    "aliases",
    "unknown_fields",
    "choices",
    "completions",
    "prompt_visible",
    "rate_limit_headers",
    "keep_questions",
    "questions_days",
    "follow_ups",
    "feedback_days",
    "handover",
    "experiment",
    "gate",
)
"""Fields that shape no reply."""
SITE_KEY = re.compile(r"pk_[A-Za-z0-9_-]{8,64}")
EVERY_ORIGIN = "*"
WITHOUT_ENCODER = ("model", "system", "examples", "knowledge", "origins")

Count = Annotated[int, Meta(ge=1)]
Line = Annotated[str, Meta(min_length=1, max_length=200)]
Alias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]


class Example(Struct, frozen=True, forbid_unknown_fields=True):
    """A question with the answer that the skill should give."""

    question: Annotated[str, Meta(min_length=1)]
    """The user's turn."""
    answer: Annotated[str, Meta(min_length=1)]
    """The assistant's turn."""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """A reference shown below replies."""

    title: Line
    """The link's text."""
    url: Annotated[str, Meta(max_length=2000)]
    """Where it leads: http or https."""
    words: tuple[Line, ...] = ()
    """Show it only below replies that contain one of these whole words, in any case; empty: below every reply."""

    def cited(self, text: str) -> bool:
        """Whether a reply with this text shows the source."""
        return not self.words or any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.I) for w in self.words)


class Skill(SamplingOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A skill's TOML file: its prompt and sampling, its limits, and who may use it.

    Limits are optional: left out, there is none. A request above one is answered 429 with Retry-After, before any token
    is generated, unless stated otherwise.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """What callers send as `model`, and the skill's name in the ledger and in metrics; unique within the folder."""
    aliases: tuple[Alias, ...] = ()
    """Other names that callers may send as `model`, such as `gpt-4o-mini` or `Qwen/Qwen3-0.6B`.

    Letters, digits and `._:/@+-`, unique among the names and aliases of all skills. Replies name the alias, the ledger
    the skill.
    """
    title: str = ""
    """The widget's heading; left out, the name."""
    greeting: str = ""
    """The widget's first message, which the model does not see; left out, none."""
    starters: Annotated[tuple[Line, ...], Meta(max_length=6)] = ()
    """Questions that the widget offers before the first message, at most 6."""
    follow_ups: Annotated[tuple[Line, ...], Meta(max_length=3)] = ()
    """Questions that the widget offers below a whole answer, at most 3; those already asked are left out."""
    handover: Handover | None = None
    """Where the widget leads a visitor who wants a person; left out, it offers nobody."""
    experiment: Experiment | None = None
    """Another prompt that answers a share of the visitors' conversations, to be compared; left out, none."""
    gate: Gate | None = None
    """What a revision must reach in a task before it is published; left out, nothing."""
    model: str = ""
    """The model that answers: a directory or `registry:NAME@production`; left out, the server's own model."""
    encoder: str = ""
    """The BERT-family encoder of a skill that only embeds: a directory with safetensors, or `package:MODULE/FOLDER`."""
    system: str = ""
    """The system prompt, sent before the caller's own; at most 100,000 characters.

    A Jinja template with the variables `title`, `date` and `weekday` (UTC) and `person` (the verified visitor, or
    empty).
    """
    system_file: str = ""
    """A text file with the system prompt instead, in the folder of this file or below it."""
    examples: tuple[Example, ...] = ()
    """Few-shot turns after the system prompt; small models follow examples far better than instructions."""
    sources: tuple[Source, ...] = ()
    """References that the widget shows below replies."""
    knowledge: str = ""
    """What replies are grounded in: a directory or `registry:NAME@production`; left out, the model answers alone."""
    knowledge_tokens: Annotated[int, Meta(ge=64, le=100_000)] = 512
    """Tokens of the passages that are quoted to the model, at most."""
    answers: Literal["free", "quoted"] = "free"
    """How replies from knowledge are worded: `free` by the model, or `quoted`: the model only chooses which sentences
    of the passages are said, word by word, so that a small model cannot invent."""
    keep_questions: bool = False
    """Whether questions that were refused, or answered and rated down, are kept as text; for the pages' authors."""
    questions_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """Days after which kept questions are deleted."""
    feedback_days: Annotated[int, Meta(ge=1, le=3650)] = 365
    """Days after which visitors' ratings, with their comments, are deleted."""
    refusal: Annotated[str, Meta(max_length=1000)] = "I found no answer to that in our pages."
    """The answer to a question that the knowledge does not cover, followed by links to the nearest documents."""
    origins: tuple[str, ...] = ()
    """Web origins (`scheme://host[:port]`) whose pages may embed the widget; `*` allows every page, left out, none."""
    site_keys: tuple[str, ...] = ()
    """Public keys, one of which the widget's script tag must have as `data-key`; left out, it needs none.

    They tell sites apart and can be revoked, but any visitor can read them.
    """
    image_origins: tuple[str, ...] = ()
    """Origins whose images the widget shows; images of other origins become links, so that no reply can call home."""
    identity: Identity | None = None
    """How visitors prove who they are; left out, all visitors are anonymous."""
    keys: tuple[str, ...] = ()
    """SHA-256 digests (hexadecimal) of API keys that open the skill, besides those of `secateur keys`."""
    max_tokens: Count = 256
    """Tokens of a reply whose caller sets no `max_tokens`, and of every visitor's; the reply ends there with `length`.

    256 tokens are about 190 English words.
    """
    tokens_per_reply: Count | None = None
    """The most tokens of a reply; a request for more gets these, and says so in `X-Secateur-Max-Tokens`.

    Left out, callers with an API key may ask for as many as the context and `tokens_per_minute` have room for.
    """
    tokens_per_minute: Count | None = None
    """Tokens of all requests within a minute, each counted at its start as prompt plus longest possible reply.

    A single request that can never fit is refused with 400.
    """
    tokens_per_day: Count | None = None
    """Prompt and reply tokens in a day (UTC); a reply that reaches it ends there with `length`."""
    tokens_per_month: Count | None = None
    """Prompt and reply tokens in a calendar month (UTC); a reply that reaches it ends there with `length`."""
    requests_per_minute: Count | None = None
    """Requests within a minute, of all callers and visitors together."""
    concurrent_replies: Count | None = None
    """Replies generated at once, of all callers and visitors, by all servers that share `rate_limits`."""
    rate_limit_headers: bool = False
    """Whether callers see in `x-ratelimit-*` headers what is left of the two limits a minute above.

    They count all callers of the skill, so each then sees how much the others ask. Callers whose API key has limits of
    its own see those instead, always.
    """
    visitor_requests_per_minute: Count = 20
    """Messages, and separately ratings, of one widget conversation within a minute; 20 is faster than anyone reads."""
    address_requests_per_minute: Count = 120
    """Messages of all widget conversations from one IPv4 address or IPv6 /64 within a minute.

    A program can open many conversations; 120 still serves an office behind one address.
    """
    sessions_per_minute: Count = 60
    """Widget sessions opened or refreshed from one IPv4 address or IPv6 /64 within a minute."""
    temperature: Temperature = 0.7
    """Divides the logits: 0 is greedy, 1 the model's own distribution, more is more random.

    0.7 since a skill answers questions. Callers may set another, up to `max_temperature`; visitors cannot.
    """
    max_temperature: Temperature = 2.0
    """The highest `temperature` that callers may set; a request for more is refused with 400."""
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a request with a field that the server does not know: `refuse` answers 400.

    `ignore` answers as if the field were left out, and lists it in the response's header `X-Secateur-Ignored`.
    """
    tools: bool = True
    """Whether callers may offer `tools` to the model; if false, they are refused with 400."""
    logprobs: bool = True
    """Whether callers with an API key may ask for log probabilities; visitors never can. If false, refused with 400."""
    choices: Annotated[int, Meta(ge=1, le=16)] = 16
    """The most choices of one prompt (`n`) that callers may ask for; a request for more is refused with 400."""
    completions: bool = True
    """Whether callers with an API key may send raw prompts to /v1/completions, past its prompt and knowledge."""
    prompt_visible: bool = False
    """Whether callers with an API key may see the skill's own prompt, by `prompt_logprobs` or `return_token_ids`.

    If false, both are refused with 400 in chats with a skill that has a prompt, examples or knowledge.
    """
    history_turns: Annotated[int, Meta(ge=0, le=200)] = 12
    """Earlier turns of a widget conversation that are kept and sent to the model; the oldest are dropped."""
    history_tokens: Annotated[int, Meta(ge=0)] = 1024
    """Tokens of earlier turns that are sent to the model, newest first; fewer if the context has no room for them."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file and the files that it names; raises ConfigError naming file and field."""
        skill = read(path, cls)
        if skill.system_file:
            if skill.system:
                raise ConfigError(f"{path}: give either `$.system` or `$.system_file`, not both")
            text = system_prompt.read(path, skill.system_file)
            skill = msgspec.structs.replace(skill, system=text, system_file="")
        if skill.identity is not None:
            key = identity.read_key(path, skill.identity)
            found = msgspec.structs.replace(skill.identity, key=key, key_file="")
            skill = msgspec.structs.replace(skill, identity=found)
        check(str(path), skill)
        return skill

    @property
    def usual_tokens(self) -> int:
        """The most tokens of a reply whose caller asks for no number."""
        return min(self.max_tokens, self.tokens_per_reply or self.max_tokens)

    @property
    def hides_prompt(self) -> bool:
        """Whether the skill has turns or passages of its own that callers may not see."""
        return bool(self.system or self.examples or self.knowledge) and not self.prompt_visible

    @property
    def revision(self) -> str:
        """Digest (12 hexadecimal digits) of everything but access; the ledger records it with every reply."""
        resolved = self.merged_over(Sampling())
        content = msgspec.to_builtins(
            msgspec.structs.replace(resolved, keys=(), site_keys=(), origins=(), identity=None, experiment=None)
        )
        neutral = msgspec.to_builtins(type(self)(name=self.name).merged_over(Sampling()))
        content = {name: value for name, value in content.items() if name not in LATER or value != neutral[name]}
        for name in OUTSIDE:
            content.pop(name)
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:12]

    def admits(self, origin: str | None) -> bool:
        """Whether pages of `origin` may embed the widget."""
        return bool(origin) and origin != "null" and (origin in self.origins or EVERY_ORIGIN in self.origins)


def check(where: str, skill: Skill) -> None:
    """Check what types cannot express; raises ConfigError, which begins with `where`."""
    for problem in _problems(skill):
        raise ConfigError(f"{where}: {problem}")
    if skill.identity is not None:
        identity.check(where, skill.identity)
    system_prompt.check(where, skill.system)


def _problems(skill: Skill) -> Iterator[str]:
    """Faults of a skill's lists and numbers, one sentence each."""
    yield from origin_problems("origins", skill.origins, allowed=EVERY_ORIGIN)
    yield from origin_problems("image_origins", skill.image_origins)
    for index, known in enumerate(skill.keys):
        if not DIGEST.fullmatch(known):
            yield f"`$.keys[{index}]` is not a SHA-256 digest in hexadecimal; `secateur keys create` makes keys"
    for index, key in enumerate(skill.site_keys):
        if not SITE_KEY.fullmatch(key):
            yield f"`$.site_keys[{index}]` is not a site key; `secateur keys site` prints one"
    for index, source in enumerate(skill.sources):
        if urlsplit(source.url).scheme not in ("http", "https") or not urlsplit(source.url).hostname:
            yield f"`$.sources[{index}].url` must begin with http:// or https:// and name a host"
    alone = [field for field in WITHOUT_ENCODER if skill.encoder and getattr(skill, field)]
    yield from (f"a skill with `$.encoder` only embeds: leave out `$.{field}`" for field in alone)
    yield from handover_problems(skill.handover)
    if skill.temperature > skill.max_temperature:
        yield "`$.temperature` is above `$.max_temperature`"
