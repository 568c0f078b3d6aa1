"""Messages of a request in OpenAI's form, read as chat templates take them: `role`, `content` and what else is known.

Other keys of a message, such as `annotations`, `reasoning_content`, `refusal` or `cache_control`, are ignored: clients
send back what servers answered.
"""

import json
from typing import Any, Literal

from msgspec import Struct

from server.errors import InvalidRequest
from server.text.chat_template import Message, TemplateOptions

__all__ = ["ROLES", "ChatMessage", "Function", "Message", "Part", "TemplateOptions", "ToolCall"]
TEXTS = frozenset({"text", "input_text", "output_text"})
OTHERS = (
    "image_url",
    "input_image",
    "input_audio",
    "audio_url",
    "video_url",
    "file",
    "input_file",
    "image",
    "document",
)
ROLES = "system, developer, user, assistant, tool or function"


class Part(Struct, frozen=True):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(Struct, frozen=True):
    """The function that an assistant called."""

    name: str
    arguments: str = "{}"
    """JSON."""


class ToolCall(Struct, frozen=True):
    """A call in an assistant's turn."""

    function: Function
    id: str = ""
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True):
    """One message of a conversation, as OpenAI's clients send it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: Any = None
    """The speaker, or the function of a result; most chat templates ignore it."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Function | None = None
    """The only call, in the form that came before `tool_calls`."""
    prefix: bool | None = None
    """Whether the reply continues this last assistant's turn (Mistral's name for it)."""

    def plain(self, place: str) -> Message:
        """The message as chat templates read it; raises InvalidRequest, which names `place`."""
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(f"Expected `str | array`, got `null`: `{place}.content`.", param=f"{place}.content")
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        read: dict[str, Any] = {"role": role, "content": text_of(self.content, f"{place}.content")}
        if isinstance(self.name, str) and self.name:
            read["name"] = self.name
        if role == "assistant" and (calls := self.calls):
            read["tool_calls"] = [plain_call(call) for call in calls]
        if role == "tool" and self.tool_call_id:
            read["tool_call_id"] = self.tool_call_id
        return read

    @property
    def calls(self) -> list[ToolCall]:
        """The assistant's calls, in either form."""
        return self.tool_calls or ([ToolCall(self.function_call)] if self.function_call else [])


def text_of(content: str | list[Part] | None, place: str) -> str:
    """The text of a content, its parts joined by line breaks; raises InvalidRequest for a part that is not text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part_text(part, f"{place}[{index}]") for index, part in enumerate(content))


def part_text(part: Part, place: str) -> str:
    """The text of one part; raises InvalidRequest for a part of another kind."""
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in TEXTS | {"refusal"}:
        kind = f"`{part.type}` parts" if part.type in OTHERS else "Parts of this kind"
        raise InvalidRequest(
            f"{kind} are not supported: this server reads text only, at `{place}.type`.",
            param=f"{place}.type",
            code="unsupported_value",
        )
    if text is None:
        field = "refusal" if part.type == "refusal" else "text"
        raise InvalidRequest(f"Object missing required field `{field}`: `{place}.{field}`.", param=f"{place}.{field}")
    return text


def plain_call(call: ToolCall) -> dict[str, Any]:
    """A call as chat templates read it: its arguments decoded, or as they are if they are not JSON."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
