"""A request's sampling options over its skill's, over the engine's neutral values."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.chat.request import ReplyRequest, cache_salt, sampling_of
from server.engine.sequence import RequestedSampling, Sampling, SamplingOptions
from server.errors import ConfigError, InvalidRequest
from server.skills.skill import Skill
from server.web.api.openai.chat.schema import parse

OPTIONS = SamplingOptions.__struct_fields__
OTHER = dict.fromkeys(OPTIONS, 0.5) | {"top_k": 5}


class Tiny:
    """The parts of a model that bound a reply."""

    class engine:  # noqa: N801
        context = 100

    class tokenizer:  # noqa: N801
        stop_ids = frozenset({7})


def resolved(skill: Skill, **asked: Any) -> Sampling:
    model: Any = Tiny
    return sampling_of(ReplyRequest(skill, (), RequestedSampling(**asked)), 10, model)


def test_the_engine_has_a_neutral_value_for_every_option() -> None:
    assert None not in [getattr(Sampling(), name) for name in OPTIONS]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_request_wins_over_the_skill_and_the_skill_over_the_neutral_value(name: str) -> None:
    neutral, other = getattr(Sampling(), name), OTHER[name]
    unset = Skill(name="help", temperature=1.0)
    fixed = msgspec.structs.replace(unset, **{name: other})
    assert getattr(resolved(unset), name) == neutral
    assert getattr(resolved(fixed), name) == other
    assert getattr(resolved(fixed, **{name: neutral}), name) == neutral
    assert getattr(resolved(unset, **{name: other}), name) == other


def test_options_of_requests_alone_are_kept() -> None:
    asked = {"seed": 0, "logit_bias": ((3, -1.0),), "max_tokens": 3}
    sampling = resolved(Skill(name="help"), **asked)
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.stop_ids == {7}
    assert resolved(Skill(name="help", max_tokens=500)).max_tokens == 90  # the room in the context


def test_a_cache_salt_is_of_a_key_with_its_labels_or_of_a_conversation() -> None:
    skill = Skill(name="help")

    def salt(**caller: Any) -> str:
        return cache_salt(ReplyRequest(skill, (), **caller))

    assert salt(key_id="a", cache_labels=("b", "")) == salt(key_id="a", cache_labels=("b", ""))
    assert salt(conversation="a") == salt(conversation="a")
    callers: list[dict[str, Any]] = [
        {"key_id": "a"},
        {"conversation": "a"},
        {"key_id": "a", "cache_labels": ("b", "")},
        {"key_id": "a", "cache_labels": ("", "b")},
        {"key_id": "a", "cache_labels": ('b", "', "")},
        {"key_id": "a", "cache_labels": ("\ud800", "")},
        {"key_id": "a", "groups": frozenset(["b"])},
        {"key_id": "b"},
        {},
        {},  # nobody: a random one, which is never shared
    ]
    assert len({salt(**caller) for caller in callers}) == len(callers)


@pytest.mark.parametrize("name", OPTIONS)
def test_files_and_requests_have_the_same_bounds_and_the_same_words(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.toml"
    for value in ("-3", "-1" if name in ("top_k", "min_tokens") else "200", '"x"'):
        file.write_text(f'name = "a"\n{name} = {value}')
        with pytest.raises(ConfigError) as in_file:
            Skill.read(file)
        body = f'{{"model": "a", "messages": [{{"role": "user", "content": "x"}}], "{name}": {value}}}'
        with pytest.raises(InvalidRequest) as in_body:
            parse(body.encode())
        said, _, where = str(in_file.value).removeprefix(f"{file}: ").partition(" - at ")
        assert where == f"`$.{name}`"
        assert str(in_body.value).replace(" | null", "") == f"{said}: `{name}`."


def test_a_revision_does_not_depend_on_how_a_default_is_written() -> None:
    """The ledger names replies by it: it must outlive a new release."""
    neutral = {name: getattr(Sampling(), name) for name in OPTIONS if name != "temperature"}
    assert Skill(name="help").revision == Skill(name="help", **neutral).revision == "a6aa35d43ed5"
    assert Skill(name="help", top_p=0.5).revision != "a6aa35d43ed5"
