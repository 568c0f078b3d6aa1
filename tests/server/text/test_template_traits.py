"""Forty shapes of a conversation against templates that behave as those of well-known models.

The templates are short, with the branches that decide: what is dropped, what is refused, what is reordered.
"""

from itertools import pairwise
from typing import Any

import pytest

from server.skills.skill import Example, Skill
from server.skills.turns import conversation
from server.text.chat_template import ChatTemplate
from server.text.template_traits import TemplateTraits

ALTERNATE = (
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
REST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)
TEMPLATES = {
    "chatml": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",  # SmolLM2, Qwen
    "llama3": REST + "[system]{{ system | trim }}"
    "{% for m in turns %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}",
    "gemma3": REST + ALTERNATE + "{% for m in turns %}[{{ m['role'] }}]"
    "{% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m['content'] | trim }}{% endfor %}",
    "gemma2": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set turns = messages %}" + ALTERNATE + "{% for m in turns %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    "mistral": REST + ALTERNATE + "{% for m in turns %}{% if m['role'] == 'user' %}[INST]"
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m['content'] }}[/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
    "deaf": "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
}  # fmt: skip
SHAPES = [
    "u", "uu", "uuu", "au", "aau", "uau", "uaau", "uauu", "auau", "su", "us", "s", "ss", "a", "ua", "uaa", "suau",
    "ssu", "usu", "sausu", "susua", "sas", "usas", "aua", "saua", "uaus", "uuaauu", "suuauu", "asu", "aus", "uasu",
    "uausau", "sssuuu", "suasua", "auaua", "suauauau", "aaaa", "asasas", "ususus", "suausuau",
]  # fmt: skip
NAMES = {"u": "user", "a": "assistant", "s": "system"}
SHOWN = (Example("example-question", "example-answer"),)


def messages_of(shape: str) -> list[dict[str, Any]]:
    return [{"role": NAMES[letter], "content": f"<{letter}{index}>"} for index, letter in enumerate(shape)]


@pytest.mark.parametrize("examples", [(), SHOWN], ids=["", "examples"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders_every_shape_whole_and_in_order(name: str, examples: tuple[Example, ...]) -> None:
    template = ChatTemplate(TEMPLATES[name], {})
    traits = TemplateTraits(template)
    skill = Skill(name="help", system="own-prompt", examples=examples)
    for shape in SHAPES:
        messages = messages_of(shape)
        text = template.render(traits.fitted(conversation(skill, messages)))
        for role in ("system", "other"):
            said = [m["content"] for m in messages if (m["role"] == "system") == (role == "system")]
            places = [text.index(content) for content in said]
            assert places == sorted(places), (shape, text)
        assert "own-prompt" in text, shape
        assert ("example-answer" in text) == bool(examples), shape


@pytest.mark.parametrize(
    ("name", "takes_system", "alternates"),
    [
        ("chatml", True, False), ("llama3", True, False), ("gemma3", True, True), ("gemma2", False, True),
        ("mistral", True, True), ("deaf", False, False),
    ],
)  # fmt: skip
def test_traits_are_found_by_probes(name: str, takes_system: bool, alternates: bool) -> None:
    traits = TemplateTraits(ChatTemplate(TEMPLATES[name], {}))
    assert (traits.takes_system, traits.alternates, traits.takes_tools) == (takes_system, alternates, False)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral"])
def test_a_strict_template_gets_user_and_assistant_in_turn(name: str) -> None:
    traits = TemplateTraits(ChatTemplate(TEMPLATES[name], {}))
    for shape in SHAPES:
        turns = [m["role"] for m in traits.fitted(conversation(Skill(name="help"), messages_of(shape)))]
        roles = turns[turns[0] == "system" :]
        assert roles[0] == roles[-1] == "user"
        assert all(first != second for first, second in pairwise(roles))


def test_a_well_ordered_conversation_is_left_as_it_is() -> None:
    for name, source in TEMPLATES.items():
        traits = TemplateTraits(ChatTemplate(source, {}))
        assert traits.fitted(messages_of("uau")) == messages_of("uau"), name
    assert TemplateTraits(ChatTemplate(TEMPLATES["mistral"], {})).fitted(
        messages_of("ua"), continued=True
    ) == messages_of("ua")


def test_a_template_that_describes_tools_is_found() -> None:
    source = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATES["chatml"]
    assert TemplateTraits(ChatTemplate(source, {})).takes_tools


def test_a_template_that_always_fails_has_no_traits_and_is_reported_when_it_renders() -> None:
    traits = TemplateTraits(ChatTemplate("{{ 1 / 0 }}", {}))
    assert (traits.takes_system, traits.takes_tools) == (False, False)
