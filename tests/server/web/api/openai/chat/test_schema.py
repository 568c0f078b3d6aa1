import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.request import notes_of
from server.engine.sequence import Sampling
from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.openai.chat.schema import parse

USER = {"role": "user", "content": "hi"}
GREETING = {"role": "assistant", "content": "Hello"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "help", "messages": [USER], **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [{**USER, "prefix": True}]}, "messages[0].prefix"),
        ({"messages": [{**GREETING, "prefix": True}, USER]}, "messages[0].prefix"),
        (
            {"messages": [GREETING], "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": float("inf")}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": "\udfff"}, "stop"),
        ({"messages": [{"role": "user", "content": "x", "name": "\udfff"}]}, "messages[0].name"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options.include"),
        ({"n": 17}, "n"),
        ({"n": -1}, "n"),
        ({"n": 10**30}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "1"}, "presence_penalty"),
        ({"logit_bias": {"50256": -101}}, "logit_bias.50256"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"chat_template_kwargs": {"x": "y" * 5000}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_the_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(body(**fields))
    assert caught.value.param == param
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'"x"', "Expected `object`"),
        (b'{"model": "\xff"}', "not UTF-8"),
        ('{"model": "x"}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"model": "a", "model": "b"}', "appears twice"),
        (b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}', "appears twice"),
        (b'{"model": "a\nb"}', "not JSON"),
    ],
)
def test_bodies_that_are_no_json_object(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse(raw)


def test_the_official_clients_request_is_valid() -> None:
    request = parse(
        body(
            messages=[
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
                {"role": "user", "content": "", "name": "ann"},
            ],
            stop=["x", "y"],
            seed=-(2**63),
            n=1,
            logprobs=False,
            frequency_penalty=0,
            presence_penalty=0.0,
            logit_bias=None,
            tools=[],
            response_format={"type": "text"},
            user="u",
            metadata={"a": "b"},
            max_completion_tokens=7,
        )
    )
    assert [turn["role"] for turn in request.turns] == ["system", "user", "assistant", "user"]
    assert request.turns[1] == {"role": "user", "content": "a\nb"}
    assert request.turns[3] == {"role": "user", "content": "", "name": "ann"}  # a template may use it
    assert (request.stops, request.sampling.max_tokens) == (("x", "y"), 7)


@pytest.mark.parametrize(
    ("fields", "ignored", "unknown"),
    [
        ({"reasoning_effort": "high", "verbosity": "low"}, ("reasoning_effort", "verbosity"), ()),
        ({"store": True, "service_tier": "flex", "prediction": {"type": "content"}},
         ("store", "service_tier", "prediction"), ()),
        ({"store": False, "service_tier": "auto", "reasoning_effort": "none", "verbosity": None}, (), ()),
        ({"metadata": {"a": 1}, "safety_identifier": 3, "prompt_cache_retention": "24h", "priority": 5}, (), ()),
        ({"n": 1, "best_of": 1, "length_penalty": 1.0, "use_beam_search": False, "skip_special_tokens": True}, (), ()),
        ({"tools": [], "tool_choice": "none", "functions": [], "parallel_tool_calls": False}, (), ()),
        ({"thinking": False, "extensions": [], "audio": None, "mode": "auto", "options": {}}, (), ()),
        ({"prompt": "x", "temprature": 0, "ignored": ["a"]}, (), ("prompt", "temprature", "ignored")),
    ],
)  # fmt: skip
def test_fields_that_ask_for_nothing_are_dropped_and_others_are_named(
    fields: dict[str, Any], ignored: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    request = parse(body(**fields))
    assert (request.ignored, request.unknown) == (ignored, unknown)


def test_a_skill_refuses_unknown_fields_unless_it_ignores_them() -> None:
    request = parse(body(prompt="x", verbosity="low"))
    with pytest.raises(InvalidRequest, match="Unknown field: `prompt`") as caught:
        request.ask(Skill(name="help"))
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match=r"`temprature`\. Is it `temperature`\?"):
        parse(body(temprature=0)).ask(Skill(name="help"))
    assert request.ask(Skill(name="help", unknown_fields="ignore")).ignored == ("verbosity", "prompt")


def test_the_header_of_ignored_fields_holds_plain_words_only() -> None:
    request = parse(body(**{"b\r\nSet-Cookie: x": 1, "ok_1": 1, "naïve": 1}))
    asked = request.ask(Skill(name="help", unknown_fields="ignore"))
    assert notes_of(asked, Sampling()) == {"X-Secateur-Ignored": "?, ok_1, ?"}
    many = parse(body(**{f"x{index}": 1 for index in range(100)}))
    shown = notes_of(many.ask(Skill(name="help", unknown_fields="ignore")), Sampling())["X-Secateur-Ignored"]
    assert shown.count(",") == 32
    assert shown.endswith("x31, ...")


def test_the_last_message_is_continued_under_both_names() -> None:
    spoken = [USER, GREETING]
    assert not parse(body(messages=spoken)).template.continued
    assert parse(body(messages=spoken, continue_final_message=True)).template.continued
    assert parse(body(messages=spoken, continue_final_message=True, add_generation_prompt=False)).template.continued
    assert parse(body(messages=[USER, {**GREETING, "prefix": True}])).template.continued
    assert parse(body(chat_template_kwargs={"enable_thinking": False})).template.variables == {"enable_thinking": False}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["model", "messages", "stream", "stop", "seed", "temperature", "top_p", "n", "max_tokens", "x"])


@settings(deadline=None)
@given(st.dictionaries(names, values) | values)
def test_any_json_parses_or_names_its_mistake(value: Any) -> None:
    with suppress(InvalidRequest):
        parse(json.dumps(value).encode())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(raw)
