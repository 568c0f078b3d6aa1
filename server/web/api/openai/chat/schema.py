"""The body of POST /v1/chat/completions, validated before anything is generated.

Every fault raises InvalidRequest with the field; `fields.py` says what becomes of fields that are not read.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from server.chat.kept.idempotent_replies import Origin
from server.chat.messages import ROLES, ChatMessage, Message, TemplateOptions
from server.chat.request import ReplyRequest
from server.chat.tools.offer import CHOICES, Asked, Choice, Definition, Named, Offer, Tool, offer_of
from server.engine.sequence import RequestedSampling
from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.openai.chat.format import CompletionFormat, Included
from server.web.api.openai.engine_fields import Alternatives, EngineFields, check_biases
from server.web.api.openai.fields import fields_of, sort_fields
from server.web.http.json_body import convert, decode

Text = Annotated[str, Meta(min_length=1, max_length=256)]
ALLOWED = {"role": ROLES, "type": "function", "tool_choice": CHOICES, "function_call": CHOICES}
MOST_VARIABLES = 4096  # bytes of `chat_template_kwargs` as JSON


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream contains beside the text."""

    include_usage: bool = False
    """Whether a last chunk has the usage."""
    continuous_usage_stats: bool = False
    """Whether every chunk has the usage so far, as vLLM sends it."""
    include_obfuscation: bool = False
    """Ignored: padding that hides the lengths of tokens from listeners on the network."""


class ChatRequest(EngineFields, frozen=True, kw_only=True):
    """A request for one reply of the skill `model`; `top_k` and `min_p` are not OpenAI's but widely spoken."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    """Of the model itself, before temperature, penalties and biases."""
    top_logprobs: Alternatives | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=4)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    """Whether the reply continues the last message, an assistant's, instead of answering it (vLLM)."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking`."""
    tools: list[Tool] = field(default_factory=list)
    """Functions that the model may call."""
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool | None = None
    """Whether one reply may call several functions; by default if the model's own template writes several."""
    functions: list[Definition] = field(default_factory=list)
    """The older name of `tools`."""
    function_call: Literal["none", "auto"] | Named = "auto"
    """The older name of `tool_choice`."""

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages as chat templates read them; raises InvalidRequest for content that is not text."""
        return tuple(message.plain(f"messages[{index}]") for index, message in enumerate(self.messages))

    @property
    def template(self) -> TemplateOptions:
        """What the chat template reads beside the messages."""
        continued = self.continue_final_message or bool(self.messages[-1].prefix)
        return TemplateOptions(variables=self.chat_template_kwargs, continued=continued)

    @property
    def offer(self) -> Offer:
        """The functions that the model may call; raises InvalidRequest naming the field."""
        asked = Asked(self.tools, self.tool_choice, self.parallel_tool_calls, self.functions, self.function_call)
        return offer_of(asked)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def sampling(self) -> RequestedSampling:
        """The sampling options, in the engine's form."""
        return self.requested(
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
        )

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for one reply of `skill`; raises InvalidRequest for what it refuses."""
        if self.offer.tools and not skill.tools:
            raise InvalidRequest(f"The skill {skill.name!r} does not allow tools.", param="tools")
        return ReplyRequest(
            skill,
            self.turns,
            self.sampling,
            self.stops,
            cache_labels=self.cache_labels,
            template=self.template,
            ignored=self.ignored_for(skill),
            choices=self.n,
            grammar=self.constraint,
            tools=self.offer,
            ids=self.return_token_ids,
            prompt_shown=self.return_token_ids or self.prompt_logprobs is not None,
        )

    def format(self, origin: Origin) -> CompletionFormat:
        """The writer of the response to the request `origin`."""
        options = self.stream_options or StreamOptions()
        included = Included(
            choices=self.n,
            calls="function_call" if self.offer.legacy else "tool_calls",
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            token_ids=self.return_token_ids,
            usage=options.include_usage,
            usage_so_far=options.include_usage and options.continuous_usage_stats,
        )
        return CompletionFormat(origin, self.model, included)


def parse(body: bytes) -> ChatRequest:
    """The request in `body`; raises InvalidRequest naming the field."""
    return read(decode(body))


def read(fields: Any) -> ChatRequest:
    """The request of decoded `fields`; other APIs' bodies are translated into these."""
    if not isinstance(fields, dict):
        return convert(fields, ChatRequest)  # raises
    found = sort_fields(fields, fields_of(ChatRequest))
    request = convert({**found.read, "ignored": found.ignored, "unknown": found.unknown}, ChatRequest, ALLOWED)
    check(request)
    return request


def check(request: ChatRequest) -> None:
    """Validate what types cannot: content, and fields that depend on each other."""
    check_continued(request)
    _ = request.offer  # raises
    check_biases(request.logit_bias)
    if len(msgspec.json.encode(request.chat_template_kwargs)) > MOST_VARIABLES:
        raise InvalidRequest(
            f"`chat_template_kwargs` is longer than {MOST_VARIABLES} bytes.", param="chat_template_kwargs"
        )
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise InvalidRequest("Set max_tokens or max_completion_tokens, not both.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs`: set it to true.", param="top_logprobs")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("`prompt_logprobs` is for whole replies: set `stream` to false.", param="prompt_logprobs")
    if request.stream_options not in (None, StreamOptions()) and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true.", param="stream_options")


def check_continued(request: ChatRequest) -> None:
    """Check the messages, and that a reply that continues one continues an assistant's text."""
    *earlier, last = request.turns
    place = "continue_final_message" if request.continue_final_message else f"messages[{len(earlier)}].prefix"
    if request.template.continued and (last["role"] != "assistant" or "tool_calls" in last):
        raise InvalidRequest(f"`{place}` needs a last message of the assistant, without calls.", param=place)
    if request.template.continued and request.add_generation_prompt:
        raise InvalidRequest(f"`{place}` needs `add_generation_prompt` to be false.", param="add_generation_prompt")
    if request.add_generation_prompt is False and not request.template.continued:
        raise InvalidRequest(
            "`add_generation_prompt` may be false only with `continue_final_message`: the assistant speaks next.",
            param="add_generation_prompt",
        )
    for index, message in enumerate(request.messages[:-1]):
        if message.prefix:
            place = f"messages[{index}].prefix"
            raise InvalidRequest(f"Only the last message can be continued: `{place}`.", param=place)
