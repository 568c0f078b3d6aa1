"""What a chat template can render, found by rendering probes: templates drop or refuse what they do not know."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import ArtifactError, InvalidRequest
from server.text.chat_template import ChatTemplate, Message, TemplateOptions

SYSTEM, FIRST, SECOND, THIRD = ("probe-b51f", "probe-29ac", "probe-e07d", "probe-94c6")  # no template writes these
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": SECOND, "description": "", "parameters": {"type": "object", "properties": {}}},
}


class TemplateTraits:
    """What `template` takes, and conversations fitted to it."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.takes_system = self._renders(turns(system=SYSTEM, user=FIRST))
        """Whether it renders a system message."""
        greeting = [*turns(assistant=FIRST), *turns(user=SECOND)]
        shown = [*turns(user=FIRST, assistant=SECOND), *turns(assistant=THIRD)]
        self.alternates = not all(map(self._renders, (greeting, shown)))
        """Whether it demands user and assistant in turn."""
        self.takes_tools = self._renders(turns(user=FIRST), SECOND, TemplateOptions(tools=(TOOL,)))
        """Whether it describes tools to the model."""

    def fitted(self, messages: Sequence[Message], *, continued: bool = False) -> list[Message]:
        """`messages` as the template takes them; `continued`: the reply continues the last one.

        An empty user turn fills a gap where the template demands alternation; where it takes no system message, that
        text begins the first user turn.
        """
        fitted = list(messages)
        if self.alternates:
            fitted = alternating(fitted, continued=continued)
        return fitted if self.takes_system else without_system(fitted)

    def _renders(self, messages: Sequence[Message], word: str = "", options: TemplateOptions | None = None) -> bool:
        """Whether the template renders every content, and `word`."""
        try:
            text = self._template.render(messages, options=options or TemplateOptions())
        except (InvalidRequest, ArtifactError):
            return False
        return word in text and all(message["content"] in text for message in messages)


def turns(**contents: str) -> list[Message]:
    """One turn for each role and content."""
    return [{"role": role, "content": content} for role, content in contents.items()]


def alternating(messages: Sequence[Message], *, continued: bool) -> list[Message]:
    """`messages` with an empty user turn before each assistant's turn without a question, and at the end."""
    fitted: list[Message] = []
    for message in messages:
        if message["role"] == "assistant" and (not fitted or fitted[-1]["role"] in ("system", "assistant")):
            fitted += turns(user="")
        fitted.append(message)
    if not continued and (not fitted or fitted[-1]["role"] in ("system", "assistant")):
        fitted += turns(user="")
    return fitted


def without_system(messages: Sequence[Message]) -> list[Message]:
    """`messages` with the system's text at the beginning of the first user turn, or as a user turn if there is none."""
    text = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [message for message in messages if message["role"] != "system"]
    if not text:
        return rest
    for index, message in enumerate(rest):
        if message["role"] == "user":
            content = f"{text}\n\n{message['content']}" if message["content"] else text
            return [*rest[:index], {**message, "content": content}, *rest[index + 1 :]]
    return [*turns(user=text), *rest]
