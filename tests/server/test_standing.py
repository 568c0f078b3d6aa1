"""Which ids of a prompt are the skill's own, by the tiny tokenizer."""

from pathlib import Path
from typing import Any

from server.rollout import Model
from server.skills import Example, Skill
from server.standing import Standing
from server.turns import conversation
from tests.server.harness import LINEAGE, tokenizer


def model(folder: Path) -> Model:
    engine: Any = None
    return Model("tiny", engine, tokenizer(folder), LINEAGE)


def test_the_skills_turns_are_its_own_and_the_callers_are_not(tmp_path: Path) -> None:
    made = model(tmp_path)
    skill = Skill(name="help", system="Answer in one line.", examples=(Example("Where?", "Here."),))
    other = Skill(name="other")
    standing = Standing()

    def prompt(of: Skill, *turns: tuple[str, str]) -> list[int]:
        return made.tokenizer.chat(conversation(of, [{"role": role, "content": text} for role, text in turns]))

    asked = prompt(skill, ("user", "0 and more"))
    length = standing.length(asked, skill, made)
    own = made.tokenizer.decode(asked[:length])
    assert own.endswith("user\n") or own.endswith("user"), own
    assert "Here." in own
    assert standing.length(prompt(skill, ("user", "hello")), skill, made) == length
    assert standing.length(prompt(skill, ("system", "Be brief."), ("user", "hello")), skill, made) < length
    assert standing.length(prompt(other, ("user", "hello")), other, made) < length
