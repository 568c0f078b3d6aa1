"""Tools and calls in the messages, for chat templates that do not know them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.text.chat_template import Message
from server.text.tool_form import HERMES, ToolForm

OFFER = """You may call functions to answer the user. Their signatures, as JSON schemas, are within <tools></tools>:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object:
{call}"""
RESULT = "<tool_response>\n{content}\n</tool_response>"


def offered(tools: Sequence[Mapping[str, Any]], form: ToolForm = HERMES) -> Message:
    """A system message that describes `tools`, and the form of a call."""
    call = form.before + "<function-name>" + form.middle + "<arguments>" + form.after
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return {"role": "system", "content": OFFER.format(tools=described, call=call)}


def spelled(messages: Sequence[Message], form: ToolForm = HERMES) -> list[Message]:
    """`messages` with calls as text of the assistant, and results as turns of the user."""
    return [_spelled(message, form) for message in messages]


def _spelled(message: Message, form: ToolForm) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": RESULT.format(content=message["content"])}
    if "tool_calls" not in message:
        return message
    calls = [
        form.written(call["function"]["name"], _json(call["function"]["arguments"])) for call in message["tool_calls"]
    ]
    text = "\n".join(part for part in (message["content"], *calls) if part)
    return {"role": "assistant", "content": text}


def _json(arguments: Any) -> str:
    """Arguments as JSON; text that could not be decoded stays as it came."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
