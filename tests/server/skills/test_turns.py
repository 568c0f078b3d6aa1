"""The rule that merges messages in any order of roles into the conversation that a template reads."""

from typing import Any

import pytest

from server.skills.skill import Example, Skill
from server.skills.turns import conversation

HELP = Skill(name="help", system="Be brief.", examples=(Example("Why?", "Because."),))
BARE = Skill(name="bare")


def said(*turns: str) -> list[dict[str, Any]]:
    """Messages from `role: content`."""
    return [{"role": role, "content": content} for role, _, content in (turn.partition(": ") for turn in turns)]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (["user: a"], ["user: a"]),
        (["system: s", "user: a"], ["system: s", "user: a"]),
        (["user: a", "system: s", "user: b", "system: t"], ["system: s\n\nt", "user: a\n\nb"]),
        (["system: s"], ["system: s"]),
        (["system: ", "user: a"], ["user: a"]),
        (["assistant: hello", "user: a"], ["assistant: hello", "user: a"]),
        (["user: a", "user: b"], ["user: a\n\nb"]),
        (["user: a", "user: "], ["user: a"]),
        (["user: a", "assistant: b", "assistant: c", "user: d"], ["user: a", "assistant: b\n\nc", "user: d"]),
        (["user: a", "assistant: b"], ["user: a", "assistant: b"]),
        (["tool: 1", "tool: 2", "user: a"], ["tool: 1", "tool: 2", "user: a"]),
    ],
)
def test_messages_are_merged_by_one_rule(sent: list[str], read: list[str]) -> None:
    assert conversation(BARE, said(*sent)) == said(*read)


def test_the_skills_own_turns_come_first_and_are_not_joined_with_the_callers() -> None:
    own = said("user: Why?", "assistant: Because.")
    sent = said("assistant: Hello", "system: More.", "user: a")
    assert conversation(HELP, sent) == [*said("system: Be brief.\n\nMore."), *own, *said("assistant: Hello", "user: a")]
    assert conversation(HELP, said("user: a")) == [*said("system: Be brief."), *own, *said("user: a")]


def test_a_joined_turn_keeps_its_speakers_name_only_if_it_is_one_speaker() -> None:
    ann, bob = ({"role": "user", "content": name, "name": name} for name in ("ann", "bob"))
    assert conversation(BARE, [ann, ann]) == [{"role": "user", "content": "ann\n\nann", "name": "ann"}]
    assert conversation(BARE, [ann, bob]) == [{"role": "user", "content": "ann\n\nbob"}]


def test_a_turn_with_calls_stays_by_itself() -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    plain = {"role": "assistant", "content": "x"}
    assert conversation(BARE, [calling, plain, calling]) == [calling, plain, calling]
