"""Bodies of /v1/completions: what a prompt may be, and the field that each fault names."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from server.errors import InvalidRequest
from server.web.api.openai.completions.schema import CompletionRequest, parse
from tests.support.harness import HELP


def read(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"model": "help", "prompt": "hi", **fields}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a text", ("a text",)),
        (["one", "two"], ("one", "two")),
        ([3, 1, 4], ((3, 1, 4),)),
        ([[3, 1], [4]], ((3, 1), (4,))),
    ],
)
def test_a_prompt_is_text_or_ids_or_a_list_of_either(prompt: Any, prompts: Any) -> None:
    assert read(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [[1], 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_the_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    assert raised.value.param == param


def test_an_unknown_field_is_refused_or_ignored_as_the_skill_says() -> None:
    wanted = read(wobble=1)
    with pytest.raises(InvalidRequest, match="wobble"):
        wanted.ask(HELP)
    assert wanted.ask(replace(HELP, unknown_fields="ignore")).ignored == ("wobble",)


def test_a_skill_may_take_no_raw_prompts() -> None:
    with pytest.raises(InvalidRequest, match="takes no raw prompts: use /v1/chat/completions"):
        read().ask(replace(HELP, completions=False))


def test_prompts_are_scored_for_echoed_logprobs_and_for_prompt_logprobs() -> None:
    cases: list[tuple[dict[str, Any], int | None]] = [
        ({"logprobs": 3}, None),
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 3}, 3),
        ({"prompt_logprobs": 2, "logprobs": 3}, 2),
        ({"prompt_logprobs": 2, "logprobs": 3, "echo": True}, 3),
    ]
    for fields, count in cases:
        assert read(**fields).ask(HELP).sampling.prompt_logprobs == count
