"""The body of POST /v1/messages, translated into a chat completion's."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from server.chat.kept.idempotent_replies import Origin
from server.chat.request import ReplyRequest
from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.anthropic.blocks import messages_of
from server.web.api.anthropic.format import MessageFormat
from server.web.api.openai.chat.schema import ChatRequest
from server.web.api.translation import read_translated
from server.web.http.json_body import convert, decode

RENAMED: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}
"""Fields of chat completions under their names in messages."""
OTHER_NAMES = {"response_format", "stop", "max_completion_tokens", "n", "functions", "function_call", "logprobs"}
NOTES = {"cache_control", "inference_geo", "diagnostics", "speed"}
"""Hints that change no reply."""
TIERS = ("auto", "standard_only")


class MessagesRequest(Struct, frozen=True, kw_only=True):
    """The fields that messages have and chat completions have not, or have in another form."""

    model: str
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    system: str | list[dict[str, Any]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """`user_id` divides the prefix cache, as OpenAI's `user` does; neither is stored or logged."""
    stop_sequences: list[str] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: dict[str, Any] = field(default_factory=dict)
    thinking: dict[str, Any] = field(default_factory=dict)
    output_config: dict[str, Any] = field(default_factory=dict)
    service_tier: str = "auto"


class WantedMessage:
    """A request for one message, and the chat request that it is translated into."""

    def __init__(self, own: MessagesRequest, chat: ChatRequest) -> None:
        self._chat = chat
        self.model = own.model
        self.stream = chat.stream

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for one reply of `skill`."""
        return self._chat.ask(skill)

    def format(self, origin: Origin) -> MessageFormat:
        """The writer of the response to the request `origin`."""
        return MessageFormat(origin, self.model)


def parse(body: bytes) -> WantedMessage:
    """The request in `body`; raises InvalidRequest naming the field."""
    return read(decode(body))


def parse_count(body: bytes) -> WantedMessage:
    """The request of POST /v1/messages/count_tokens, which has no `max_tokens`."""
    fields = decode(body)
    return read({"max_tokens": 1, **fields, "stream": False} if isinstance(fields, dict) else fields)


def read(fields: Any) -> WantedMessage:
    """The request of decoded `fields`; raises InvalidRequest naming the field."""
    if not isinstance(fields, dict):
        raise InvalidRequest("Expected `object`.")
    fields = {name: value for name, value in fields.items() if value is not None and name not in NOTES}
    for name in fields.keys() & OTHER_NAMES:
        raise InvalidRequest(f"`{name}` is a field of chat completions, not of messages.", param=name)
    own = convert(fields, MessagesRequest)
    check(own)
    others = {name: value for name, value in fields.items() if name not in MessagesRequest.__struct_fields__}
    return WantedMessage(own, translated(own, others))


def check(own: MessagesRequest) -> None:
    """Validate what types cannot."""
    if own.thinking.get("type") not in (None, "disabled", "adaptive"):
        raise InvalidRequest(
            "`thinking` cannot be enabled: the models of this server do not think apart.", param="thinking.type"
        )
    if own.service_tier not in TIERS:
        raise InvalidRequest(f"Invalid value, expected {' or '.join(TIERS)}: `service_tier`.", param="service_tier")


def translated(own: MessagesRequest, others: dict[str, Any]) -> ChatRequest:
    """The chat request of a message's fields; `others` are those with one name and form in both APIs."""
    messages, places = messages_of(own.system, own.messages)
    tools = tools_of(own.tools)
    fields = {
        **others,
        "model": own.model,
        "messages": messages,
        "max_completion_tokens": own.max_tokens,
        "stop": own.stop_sequences or None,
        "user": own.metadata.get("user_id"),
        "response_format": response_format(own.output_config.get("format")),
        "reasoning_effort": own.output_config.get("effort"),
        "tools": tools or None,
        "tool_choice": choice_of(own.tool_choice) if tools else None,
        "parallel_tool_calls": False if tools and own.tool_choice.get("disable_parallel_tool_use") else None,
        "continue_final_message": True if messages and messages[-1]["role"] == "assistant" else None,
    }
    for index in range(len(tools)):
        places[f"tools[{index}].function"] = f"tools[{index}]"
        places[f"tools[{index}].function.parameters"] = f"tools[{index}].input_schema"
    kept = {name: value for name, value in fields.items() if value is not None}
    return read_translated(kept, {**RENAMED, **places})


def response_format(given: Any) -> dict[str, Any] | None:
    """The `response_format` of an output format; raises InvalidRequest for one that is not a JSON schema."""
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise InvalidRequest(
            "Invalid value, expected json_schema: `output_config.format.type`.", param="output_config.format.type"
        )
    schema = {"name": "output", "strict": True, "schema": given.get("schema")}
    return {"type": "json_schema", "json_schema": schema}


def tools_of(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the form of chat completions; raises InvalidRequest for Anthropic's own tools."""
    found = []
    for index, tool in enumerate(given):
        kind, place = tool.get("type") or "custom", f"tools[{index}].type"
        if kind != "custom":
            raise InvalidRequest(
                f"Tools of the type {str(kind)[:64]!r} are not supported; custom is: `{place}`.",
                param=place,
                code="unsupported_value",
            )
        function = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool.get("input_schema"),
            "strict": tool.get("strict"),
        }
        kept = {name: value for name, value in function.items() if value is not None}
        found.append({"type": "function", "function": kept})
    return found


def choice_of(given: Mapping[str, Any]) -> str | dict[str, Any]:
    """A `tool_choice` in the form of chat completions; raises InvalidRequest for an unknown type."""
    match given.get("type", "auto"):
        case "auto" | "none" as kind:
            return str(kind)
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": given.get("name")}}
    raise InvalidRequest(
        "Invalid value, expected auto, any, tool or none: `tool_choice.type`.", param="tool_choice.type"
    )
