"""Messages of Anthropic's API as messages of a chat completion: a text, or blocks of text, calls and their results."""

import json
from typing import Any, NamedTuple

from server.errors import InvalidRequest

THOUGHTS = ("thinking", "redacted_thinking")
"""Blocks of earlier turns that are not shown to the model again."""
ROLES = ("user", "assistant", "system")
FAILED = "Error: "
"""Begins the text of a tool's result that has `is_error`."""


class Messages(NamedTuple):
    """Messages, and the caller's path of each of their paths."""

    messages: list[dict[str, Any]]
    places: dict[str, str]

    def add(self, message: dict[str, Any], place: str) -> None:
        """Append a message that came from `place`."""
        self.places[f"messages[{len(self.messages)}]"] = place
        self.messages.append(message)


def messages_of(system: Any, given: list[dict[str, Any]]) -> Messages:
    """The messages of a request; raises InvalidRequest naming the message and block."""
    found = Messages([], {})
    if system:
        found.add({"role": "system", "content": texts_of(system, "system")}, "system")
    for index, message in enumerate(given):
        place = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InvalidRequest(f"Invalid value, expected user or assistant: `{place}.role`.", param=f"{place}.role")
        if not isinstance(content, list) or role == "system":
            found.add({"role": role, "content": texts_of(content, f"{place}.content")}, place)
        else:
            add_blocks(role, blocks_of(content, f"{place}.content"), place, found)
    return found


def add_blocks(role: str, blocks: list[tuple[str, dict[str, Any]]], place: str, found: Messages) -> None:
    """Append the messages of one turn's blocks, in their order."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for path, block in blocks:
        match block.get("type"), role:
            case "text", _:
                texts.append(text_of(block, path))
            case "tool_use", "assistant":
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                function = {"name": block.get("name"), "arguments": arguments}
                calls.append({"id": block.get("id") or "", "type": "function", "function": function})
            case "tool_result", "user":
                if texts:
                    found.add({"role": role, "content": "\n".join(texts)}, place)
                    texts = []
                found.add(result_of(block, path), path)
            case kind, _ if kind not in THOUGHTS:
                raise unsupported(kind, path)
    if texts or calls:
        message = {"role": role, "content": "\n".join(texts)}
        found.add({**message, "tool_calls": calls} if calls else message, place)


def result_of(block: dict[str, Any], place: str) -> dict[str, Any]:
    """The message of a tool's result."""
    text = texts_of(block.get("content") or "", f"{place}.content")
    failed = FAILED if block.get("is_error") else ""
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": failed + text}


def texts_of(content: Any, place: str) -> str:
    """A text, or the texts of blocks joined by line breaks; raises InvalidRequest for other content."""
    if isinstance(content, str):
        return content
    found = []
    for path, block in blocks_of(content, place):
        if block.get("type") != "text":
            raise unsupported(block.get("type"), path)
        found.append(text_of(block, path))
    return "\n".join(found)


def blocks_of(content: Any, place: str) -> list[tuple[str, dict[str, Any]]]:
    """The blocks of a content, each with its path; raises InvalidRequest if they are none."""
    if not isinstance(content, list):
        raise InvalidRequest(f"Expected `str | array`: `{place}`.", param=place)
    for index, block in enumerate(content):
        if not isinstance(block, dict):
            raise InvalidRequest(f"Expected `object`: `{place}[{index}]`.", param=f"{place}[{index}]")
    return [(f"{place}[{index}]", block) for index, block in enumerate(content)]


def text_of(block: dict[str, Any], place: str) -> str:
    """The text of a text block."""
    text = block.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"Expected `str`: `{place}.text`.", param=f"{place}.text")
    return text


def unsupported(kind: Any, place: str) -> InvalidRequest:
    """The error for a block that this server or this role cannot have."""
    return InvalidRequest(
        f"Blocks of the type {str(kind)[:64]!r} are not supported here: `{place}.type`. A user sends text and "
        "tool_result, an assistant text, tool_use and thinking.",
        param=f"{place}.type",
        code="unsupported_value",
    )
