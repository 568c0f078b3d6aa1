"""The token ids that every conversation with a skill begins with, found by the tiny tokenizer."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from server.chat.shared_prefix import PROBES, SharedPrefixes
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.skill import Example, Skill
from server.skills.turns import conversation
from server.text.tokenizer import Tokenizer
from tests.support.harness import tokenizer

SKILL = Skill(name="help", system="Answer in one line.", examples=(Example(question="Where?", answer="Here."),))


class Watched:
    """A tokenizer that notes each conversation it renders, after `before`."""

    def __init__(self, words: Tokenizer, before: Callable[[], object] = lambda: None) -> None:
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self._words = words
        self._before = before

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        self.asked.append(messages[-1]["content"])
        self.threads.add(threading.current_thread())
        self._before()
        return self._words.chat(messages)


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    return tokenizer(tmp_path)


def model_with(chat: Any) -> Model:
    unused: Any = None
    return Model("tiny", unused, chat, unused)


def prompt(words: Tokenizer, *turns: tuple[str, str]) -> list[int]:
    return words.chat(conversation(SKILL, [{"role": role, "content": text} for role, text in turns]))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_the_skills_turns_are_its_own_and_the_callers_are_not(words: Tokenizer) -> None:
    prefixes, model = SharedPrefixes(), model_with(words)

    async def check() -> None:
        async def length(*turns: tuple[str, str]) -> int:
            return await prefixes.length(prompt(words, *turns), SKILL, model)

        shared = await length(("user", "0 and more"))
        own = words.decode(prompt(words, ("user", "0 and more"))[:shared])
        assert "Here." in own
        assert "0" not in own
        assert await length(("user", "hello")) == shared
        assert await length(("system", "Be brief."), ("user", "hello")) < shared
        other = Skill(name="other", system="Do not.")
        assert await prefixes.length(words.encode("0"), other, model) == 0

    run(check())


def test_the_loop_goes_on_while_the_probes_are_rendered(words: Tokenizer) -> None:
    """The tokenizer waits for the loop: on the loop it would wait for ever."""
    loop_went_on = threading.Event()
    watched = Watched(words, lambda: loop_went_on.wait(30) or pytest.fail("the loop is blocked"))

    async def check() -> None:
        finding = asyncio.create_task(SharedPrefixes().length(prompt(words, ("user", "x")), SKILL, model_with(watched)))
        while not watched.asked:
            await asyncio.sleep(0)
        loop_went_on.set()
        assert await finding > 0
        assert threading.current_thread() not in watched.threads

    run(check())


def test_each_model_and_skill_is_probed_once_though_many_wait_and_one_leaves(words: Tokenizer) -> None:
    all_wait = threading.Event()
    watched = Watched(words, lambda: all_wait.wait(30))
    prefixes, model, asked = SharedPrefixes(), model_with(watched), prompt(words, ("user", "x"))

    async def check() -> None:
        first, *others = [asyncio.create_task(prefixes.length(asked, SKILL, model)) for _ in range(9)]
        while not watched.asked:
            await asyncio.sleep(0)
        first.cancel()
        all_wait.set()
        assert len(set(await asyncio.gather(*others))) == 1
        assert watched.asked == list(PROBES)
        same_text = Skill(name="help", system=SKILL.system, examples=SKILL.examples)
        await prefixes.length(asked, same_text, model)
        assert watched.asked == list(PROBES)
        await prefixes.length(asked, Skill(name="help", system="Another revision."), model)
        await prefixes.length(asked, SKILL, model_with(watched))
        assert watched.asked == list(PROBES) * 3

    run(check())


def test_a_failure_is_raised_and_tried_again(words: Tokenizer) -> None:
    failures = [InvalidRequest("The template refuses.")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    prefixes, model, asked = SharedPrefixes(), model_with(Watched(words, fail_once)), prompt(words, ("user", "x"))

    async def check() -> None:
        with pytest.raises(InvalidRequest, match="refuses"):
            await prefixes.length(asked, SKILL, model)
        assert await prefixes.length(asked, SKILL, model) > 0

    run(check())


def test_a_retired_model_is_not_held(words: Tokenizer) -> None:
    prefixes = SharedPrefixes()

    async def check() -> None:
        model = model_with(words)
        await prefixes.length(prompt(words, ("user", "x")), SKILL, model)
        held = ref(model)
        del model
        await asyncio.sleep(0)
        gc.collect()
        assert held() is None

    run(check())
