"""The conversation that the model reads, from messages in any order of roles."""

from collections.abc import Iterable, Sequence

from server.skills import system_prompt
from server.skills.skill import Skill
from server.text.chat_template import Message

BETWEEN = "\n\n"


def conversation(skill: Skill, messages: Sequence[Message], person: str = "") -> list[Message]:
    """One system message (the skill's prompt, then the caller's), the skill's examples, then the caller's turns.

    System messages are joined wherever they come, and so are neighbouring turns of one role, by a blank line. Raises
    jinja2.TemplateError if the system prompt fails for this `person`.
    """
    own = system_prompt.render(skill.system, title=skill.title or skill.name, person=person)
    parts = [own, *(message["content"] for message in messages if message["role"] == "system")]
    text = BETWEEN.join(part for part in parts if part)
    shown = [
        {"role": role, "content": content}
        for example in skill.examples
        for role, content in (("user", example.question), ("assistant", example.answer))
    ]
    turns = joined(message for message in messages if message["role"] != "system")
    return [*([{"role": "system", "content": text}] if text else []), *shown, *turns]


def joined(messages: Iterable[Message]) -> list[Message]:
    """`messages` with neighbours of one role as one turn; results of tools and turns with calls stay apart."""
    turns: list[Message] = []
    for message in messages:
        before = turns[-1] if turns else None
        if (
            before
            and before["role"] == message["role"] != "tool"
            and not (before.keys() | message.keys()) & {"tool_calls"}
        ):
            turns[-1] = _both(before, message)
        else:
            turns.append(message)
    return turns


def _both(first: Message, second: Message) -> Message:
    """Two turns of one role as one, with the speaker's name if it is the same."""
    content = BETWEEN.join(text for text in (first["content"], second["content"]) if text)
    name = {"name": first["name"]} if first.get("name") and first.get("name") == second.get("name") else {}
    return {"role": first["role"], "content": content, **name}
