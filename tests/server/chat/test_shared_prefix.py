"""Which ids of a prompt are the skill's own, by the tiny tokenizer."""

from pathlib import Path

from server.chat.shared_prefix import Standing
from server.skills.skill import Example, Skill
from server.skills.turns import conversation
from tests.support.harness import tokenizer


def test_the_skills_turns_are_its_own_and_the_callers_are_not(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    skill = Skill(name="help", system="Answer in one line.", examples=(Example("Where?", "Here."),))
    standing = Standing()

    def prompt(*turns: tuple[str, str]) -> list[int]:
        return words.chat(conversation(skill, [{"role": role, "content": text} for role, text in turns]))

    def length(ids: list[int]) -> int:
        return standing.length(ids, ("tiny", skill), lambda text: prompt(("user", text)))

    asked = prompt(("user", "0 and more"))
    own = words.decode(asked[: length(asked)])
    assert "Here." in own
    assert "0" not in own
    assert length(prompt(("user", "hello"))) == length(asked)
    assert length(prompt(("system", "Be brief."), ("user", "hello"))) < length(asked)
    assert standing.length(asked, "another skill", lambda text: words.encode(text)) == 0
