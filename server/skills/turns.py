"""The turns that the model reads: the skill's own, then the caller's."""

from collections.abc import Mapping, Sequence

from server.skills import system_prompt
from server.skills.catalogue import Skill


def conversation(skill: Skill, messages: Sequence[Mapping[str, str]], person: str = "") -> list[Mapping[str, str]]:
    """The skill's system prompt and the caller's own as one first message, the skill's examples, then the turns."""
    own = [message["content"] for message in messages if message["role"] == "system"]
    parts = [
        part
        for part in (system_prompt.render(skill.system, title=skill.title or skill.name, person=person), *own)
        if part
    ]
    first = [{"role": "system", "content": "\n\n".join(parts)}] if parts else []
    shown = [
        {"role": role, "content": content}
        for example in skill.examples
        for role, content in (("user", example.question), ("assistant", example.answer))
    ]
    return [*first, *shown, *(message for message in messages if message["role"] != "system")]
