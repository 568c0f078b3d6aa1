"""The body of POST /v1/responses, translated into a chat completion's; nothing is stored, whatever `store` says."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from server.chat.kept.idempotent_replies import Origin
from server.chat.request import ReplyRequest
from server.errors import InvalidRequest, SecateurError
from server.skills.skill import Skill
from server.web.api.openai.chat.schema import ChatRequest
from server.web.api.openai.responses.format import Echo, ResponseFormat
from server.web.api.openai.responses.items import STATELESS, messages_of
from server.web.api.reply_endpoint import Dialect
from server.web.api.translation import read_translated, renamed
from server.web.http import problems
from server.web.http.json_body import convert, decode

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = frozenset({
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
})  # fmt: skip
REFUSED: Mapping[str, str] = {
    "previous_response_id": STATELESS,
    "conversation": STATELESS,
    "background": "a reply is generated while its caller waits",
    "prompt": "prompts are kept in a skill's file: name the skill as `model`",
    "context_management": "the conversation is read as it is sent",
}
"""Fields that cannot be honoured, with the reason."""
RENAMED: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "logprobs": "include",
}
"""Fields of chat completions under their names in responses."""
OTHER_NAMES = {*RENAMED, "n", "functions", "function_call"} - {"logprobs", "reasoning_effort", "verbosity"}
Pairs = Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]


class TextConfig(Struct, frozen=True):
    """The form of the text."""

    format: dict[str, Any] = field(default_factory=lambda: {"type": "text"})
    verbosity: str | None = None


class Own(Struct, frozen=True, kw_only=True):
    """The fields that responses have and chat completions have not, or have in another form."""

    model: str
    input: Any
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tool_calls: int | None = None
    """Ignored: it bounds built-in tools, of which there are none."""
    include: list[str] = field(default_factory=list)
    metadata: Pairs = field(default_factory=dict)
    reasoning: dict[str, Any] = field(default_factory=dict)
    store: bool = False
    """Accepted and not honoured: no response is stored, and each one says so."""
    text: TextConfig = TextConfig()
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    truncation: Literal["disabled"] = "disabled"
    """An input that is too long is refused, never cut."""


class ResponsesRequest:
    """A request for one response, and the chat request that it is translated into."""

    def __init__(self, own: Own, chat: ChatRequest) -> None:
        self._own = own
        self._chat = chat
        self.model = own.model
        self.stream = chat.stream

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for one reply of `skill`."""
        return self._chat.ask(skill)

    def format(self, origin: Origin) -> ResponseFormat:
        """The writer of the response to the request `origin`."""
        own, chat = self._own, self._chat
        echo = Echo(
            model=own.model,
            instructions=own.instructions,
            max_output_tokens=own.max_output_tokens,
            metadata=own.metadata,
            temperature=chat.temperature,
            top_p=chat.top_p,
            top_logprobs=chat.top_logprobs or 0,
            text={"format": own.text.format, **({"verbosity": own.text.verbosity} if own.text.verbosity else {})},
            tools=[{"description": None, "parameters": None, "strict": True, **tool} for tool in own.tools],
            parallel_tool_calls=chat.parallel_tool_calls is not False,
            tool_choice=own.tool_choice,
            prompt_cache_key=chat.prompt_cache_key,
            user=chat.user,
        )
        return ResponseFormat(origin, echo, logprobs=chat.logprobs)


def parse(body: bytes) -> ResponsesRequest:
    """The request in `body`; raises InvalidRequest naming the field."""
    fields = decode(body)
    if not isinstance(fields, dict):
        raise InvalidRequest("Expected `object`.")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, reason in REFUSED.items():
        if fields.pop(name, None) not in (None, False, [], ""):
            raise InvalidRequest(f"`{name}` is not supported: {reason}.", param=name, code="unsupported_parameter")
    for name in fields.keys() & OTHER_NAMES:
        instead = f"; here it is `{RENAMED[name]}`" if name in RENAMED else ""
        raise InvalidRequest(f"`{name}` is a field of chat completions{instead}.")
    own = convert(fields, Own, {"truncation": "disabled: drop the oldest items yourself"})
    for index, name in enumerate(own.include):
        if name not in INCLUDABLE:
            raise InvalidRequest(f"Unknown value: `include[{index}]`.", param=f"include[{index}]")
    others = {name: value for name, value in fields.items() if name not in Own.__struct_fields__}
    return ResponsesRequest(own, translated(own, others))


def translated(own: Own, others: dict[str, Any]) -> ChatRequest:
    """The chat request of a response's fields; `others` are those with one name and form in both APIs."""
    messages, places = messages_of(own.input)
    if own.instructions:
        messages, places = [{"role": "system", "content": own.instructions}, *messages], ["instructions", *places]
    tools, choice = tools_of(own.tools), choice_of(own.tool_choice)
    logprobs = LOGPROBS in own.include or bool(others.get("top_logprobs"))
    fields = {
        **others,
        "model": own.model,
        "messages": messages,
        "max_completion_tokens": own.max_output_tokens,
        "logprobs": True if logprobs else None,
        "response_format": response_format(own.text.format),
        "reasoning_effort": own.reasoning.get("effort"),
        "verbosity": own.text.verbosity,
        "tools": tools or None,
        "tool_choice": choice if tools or choice != "auto" else None,
    }
    paths = {f"messages[{index}]": place for index, place in enumerate(places)}
    paths |= {f"tools[{index}].function": f"tools[{index}]" for index in range(len(tools))}
    return read_translated({name: value for name, value in fields.items() if value is not None}, {**RENAMED, **paths})


def response_format(given: dict[str, Any]) -> dict[str, Any] | None:
    """The `response_format` of a `text.format`; None for plain text."""
    if given.get("type") == "text":
        return None
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def tools_of(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the form of chat completions; raises InvalidRequest for any but functions."""
    for index, tool in enumerate(given):
        if tool.get("type") != "function":
            kind, place = str(tool.get("type"))[:64], f"tools[{index}].type"
            raise InvalidRequest(
                f"Tools of the type {kind!r} are not supported; function is: `{place}`.",
                param=place,
                code="unsupported_value",
            )
    names = ("name", "description", "parameters", "strict")
    return [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
        for tool in given
    ]


def choice_of(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """A `tool_choice` in the form of chat completions."""
    if isinstance(given, str):
        return given
    match given.get("type"):
        case "function":
            return {"type": "function", "function": {"name": given.get("name")}}
        case "allowed_tools":
            listed = given.get("tools")
            names = [tool.get("name") for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []
            allowed = [{"type": "function", "function": {"name": name}} for name in names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode"), "tools": allowed}}
        case kind:
            raise InvalidRequest(
                f"The tool choice {str(kind)[:64]!r} is not supported: `tool_choice.type`.", param="tool_choice.type"
            )


def error_body(error: SecateurError) -> dict[str, Any]:
    """OpenAI's error object, with the names that fields have in responses."""
    return problems.body(renamed(error, RENAMED) if isinstance(error, InvalidRequest) else error)


RESPONSES = Dialect(error_body=error_body, count_head={"object": "response.input_tokens"})
