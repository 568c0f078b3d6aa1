"""The conversation that the model reads."""

from collections.abc import Mapping, Sequence

from server.skills import system_prompt
from server.skills.skill import Skill


def conversation(skill: Skill, messages: Sequence[Mapping[str, str]], person: str = "") -> list[Mapping[str, str]]:
    """One system message (the skill's prompt, then the caller's), the skill's examples, then the caller's turns.

    Messages have `role` and `content`. Raises jinja2.TemplateError if the system prompt fails for this `person`.
    """
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
