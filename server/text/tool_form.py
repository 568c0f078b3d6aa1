"""How a model's chat template writes an assistant's calls, found by rendering two of them.

Templates with a form of another kind, such as XML, or with special tokens around a call, have none here.
"""

import re
from collections.abc import Collection
from itertools import takewhile
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from server.errors import ArtifactError, InvalidRequest
from server.text.chat_template import ChatTemplate, Message, TemplateOptions

QUESTION, ANSWER = "probe-71c0", "probe-5d38"
FUNCTIONS = ("probe_a4e1", "probe_c6b9")
VALUES = ("probe_18f7", "probe_f302")
ARGUMENT = "probe_92dd"


class ToolForm(Struct, frozen=True):
    """The text around the name and the arguments of a call."""

    before: str
    """Up to the name, such as `<tool_call>\\n{"name": "`."""
    middle: str
    """From the name to the arguments, such as `", "arguments": `."""
    after: str
    """Behind the arguments, such as `}\\n</tool_call>`."""
    between: str | None = "\n"
    """Between two calls; None if the model makes one call at most."""

    @property
    def trigger(self) -> str:
        """What begins a call within a text; empty if a call is bare JSON, which must be the whole reply."""
        return self.before.partition("{")[0].strip()

    def written(self, name: str, arguments: str) -> str:
        """A call as the model writes it; `arguments` is JSON."""
        return f"{self.before}{name}{self.middle}{arguments}{self.after}"


HERMES = ToolForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
"""For templates without a form of their own; Qwen's and Hermes' models learnt it."""


def tool_form(template: ChatTemplate, specials: Collection[str]) -> ToolForm | None:
    """The form of `template`'s calls, or None: it renders none, or one that cannot be constrained to."""
    try:
        plain, one = _rendered(template, ANSWER), _rendered(template, "", 1)
    except (InvalidRequest, ArtifactError):
        return None
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(plain, one, strict=False)))
    end = plain.partition(ANSWER)[2]
    found = _split(one[start:].removesuffix(end)) if one.endswith(end) else None
    if found is None or any(special in found.before + found.middle + found.after for special in specials):
        return None
    return replace(found, between=_between(template, found))


def _between(template: ChatTemplate, form: ToolForm) -> str | None:
    """What `template` writes between two calls; None if it refuses two."""
    try:
        two = _rendered(template, "", 2)
    except (InvalidRequest, ArtifactError):
        return None
    first, second = (form.written(name, _arguments(index)) for index, name in enumerate(FUNCTIONS))
    both = re.search(f"{re.escape(first)}(\\s*){re.escape(second)}", two)
    return both[1] if both else None


def _arguments(index: int) -> str:
    return f'{{"{ARGUMENT}": "{VALUES[index]}"}}'


def _rendered(template: ChatTemplate, text: str, calls: int = 0) -> str:
    """The text of a question, and of an assistant's turn with `text` and `calls` calls."""
    made: list[dict[str, Any]] = [
        {
            "id": f"probe0{index}00",  # nine characters, as Mistral's templates demand
            "type": "function",
            "function": {"name": FUNCTIONS[index], "arguments": {ARGUMENT: VALUES[index]}},
        }
        for index in range(calls)
    ]
    answered = {"role": "assistant", "content": text, **({"tool_calls": made} if made else {})}
    tools = tuple(
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
        for name in FUNCTIONS
    )
    messages: list[Message] = [{"role": "user", "content": QUESTION}, answered]
    return template.render(messages, reply=False, options=TemplateOptions(tools=tools))


def _split(call: str) -> ToolForm | None:
    """The form in the text of the first call; None if it is not JSON as `tojson` writes it."""
    before, name, rest = call.partition(FUNCTIONS[0])
    middle, arguments, after = rest.partition(_arguments(0))
    whole = name and arguments and before.endswith('"') and middle.startswith('"') and after.startswith("}")
    return ToolForm(before, middle, after) if whole else None
