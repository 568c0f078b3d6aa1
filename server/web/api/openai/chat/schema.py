"""The body of POST /v1/chat/completions, validated before anything is generated.

Every fault raises InvalidRequest with the field; an unsupported field is refused, never ignored.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from server.chat.idempotent_replies import Origin
from server.chat.messages import ROLES, ChatMessage, Message
from server.chat.request import ReplyRequest
from server.engine.sequence import RequestedSampling, SamplingOptions
from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.openai.chat.format import CompletionFormat
from server.web.http.json_body import convert, decode

# OpenAI's unsupported fields, with the values that change nothing and are accepted, as null always is.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
# The caller's own notes: they change no reply, and are neither stored nor logged.
IGNORED = ("metadata", "safety_identifier", "prompt_cache_retention")

Text = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream contains beside the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(SamplingOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request for one reply of the skill `model`; `top_k` and `min_p` are not OpenAI's but widely spoken."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    seed: int | None = None
    logprobs: bool = False
    """Of the model itself, before temperature, penalties and biases."""
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=4)] | None = None
    user: str | None = None
    """Like `prompt_cache_key`, it divides the key's prefix cache, and is neither stored nor logged."""
    prompt_cache_key: str | None = None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages as chat templates read them; raises InvalidRequest for content that is not text."""
        return tuple(message.plain(f"messages[{index}]") for index, message in enumerate(self.messages))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def cache_labels(self) -> tuple[str, str]:
        """Requests of an API key share cached prompts only if these are equal."""
        return self.user or "", self.prompt_cache_key or ""

    @property
    def sampling(self) -> RequestedSampling:
        """The sampling options, in the engine's form."""
        requested = RequestedSampling(
            logit_bias=tuple(self.logit_bias.items()) if self.logit_bias else None,
            seed=self.seed,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
        )
        return requested.merged_over(self)

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for one reply of `skill`."""
        return ReplyRequest(skill, self.turns, self.sampling, self.stops, cache_labels=self.cache_labels)

    def format(self, origin: Origin) -> CompletionFormat:
        """The writer of the response to the request `origin`."""
        include_usage = self.stream_options is not None and self.stream_options.include_usage
        return CompletionFormat(origin, self.model, logprobs=self.logprobs, include_usage=include_usage)


def parse(body: bytes) -> ChatRequest:
    """The request in `body`; raises InvalidRequest naming the field."""
    return read(decode(body))


def read(fields: Any) -> ChatRequest:
    """The request of decoded `fields`; other APIs' bodies are translated into these."""
    if isinstance(fields, dict):
        fields = supported(fields)
    request = convert(fields, ChatRequest, ALLOWED)
    check(request)
    return request


def supported(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` without nulls, neutral and ignored ones; raises InvalidRequest for an unsupported one."""
    for name, values in NEUTRAL.items():
        value = fields.get(name)
        if value is not None and value not in values:
            allowed = " or ".join(json.dumps(value) for value in values)
            hint = f" beyond {allowed}" if allowed else ""
            raise InvalidRequest(f"`{name}` is not supported{hint}.", param=name, code="unsupported_parameter")
    dropped = {*NEUTRAL, *IGNORED}
    kept = {name: value for name, value in fields.items() if value is not None and name not in dropped}
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [without_nulls(message) for message in messages]
    return kept


def without_nulls(message: Any) -> Any:
    """`message` without null fields: the official client returns replies with `refusal: null` and others."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None}


ALLOWED = {
    "role": ROLES,
    "type": "function",
    "include_obfuscation": "false",
}


def check(request: ChatRequest) -> None:
    """Validate what types cannot: the order of roles, and fields that depend on each other."""
    check_roles([message["role"] for message in request.turns])
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise InvalidRequest("Set max_tokens or max_completion_tokens, not both.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs`: set it to true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true.", param="stream_options")


def check_roles(roles: list[str]) -> None:
    """Raise InvalidRequest unless roles are: optionally system, then user and assistant in turn, ending with user."""
    turns = roles[1:] if roles[0] == "system" else roles
    offset = len(roles) - len(turns)
    for index, role in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            param = f"messages[{index + offset}].role"
            raise InvalidRequest(f"Roles out of order: expected {expected}, got {role} at `{param}`.", param=param)
    if len(turns) % 2 == 0:
        raise InvalidRequest("The last message must be the user's.", param=f"messages[{len(roles) - 1}].role")
