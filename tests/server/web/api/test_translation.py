"""Bodies of the translated APIs: errors keep the caller's names, and nothing that is sent fails otherwise."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.anthropic.schema import parse as parse_message
from server.web.api.openai.embeddings import parse as parse_embeddings
from server.web.api.openai.responses.schema import parse as parse_response
from server.web.api.translation import renamed

WORDS = [
    "model", "input", "messages", "role", "content", "type", "text", "tools", "tool_choice", "name", "parameters",
    "user", "assistant", "system", "message", "function", "function_call", "function_call_output", "call_id",
    "output", "arguments", "tool_use", "tool_result", "tool_use_id", "id", "input_schema", "allowed_tools", "mode",
    "auto", "any", "tool", "none", "format", "json_schema", "schema", "metadata", "user_id", "thinking",
    "output_config", "max_tokens", "help", "include", "reasoning", "effort", "item_reference", "stop_sequences",
    "is_error", "max_output_tokens", "instructions", "stream", "redacted_thinking",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(WORDS) | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
)
FIELDS = st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=6)
LIKELY = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | VALUES, "content": VALUES},
    optional={"type": VALUES, "name": VALUES, "call_id": VALUES, "arguments": VALUES, "output": VALUES},
)


@settings(deadline=None, max_examples=150)
@given(FIELDS, st.lists(LIKELY, max_size=3) | VALUES)
def test_any_body_is_read_or_refused(fields: dict[str, Any], items: Any) -> None:
    skill = Skill(name="help")
    bodies: list[tuple[Any, dict[str, Any]]] = [
        (parse_response, {**fields, "model": "help", "input": items}),
        (parse_message, {"max_tokens": 5, **fields, "model": "help", "messages": items}),
    ]
    for parse, body in bodies:
        for name in ("messages", "max_tokens") if parse is parse_response else ():
            body.pop(name, None)
        with suppress(InvalidRequest):
            parse(json.dumps(body).encode()).ask(skill)
    with suppress(InvalidRequest):
        _ = parse_embeddings(json.dumps({"model": "help", **fields, "input": items}).encode()).inputs


@pytest.mark.parametrize("place", ["input", "messages"])
def test_deep_nesting_is_refused(place: str) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    block = f'{{"type": "tool_use", "id": "x", "name": "f", "input": {deep}}}'
    bodies = {
        "messages": f'{{"model": "h", "max_tokens": 5, "messages": [{{"role": "assistant", "content": [{block}]}}]}}',
        "input": f'{{"model": "h", "input": [{{"role": "user", "content": {deep}}}]}}',
    }
    with suppress(InvalidRequest):
        (parse_message if place == "messages" else parse_response)(bodies[place].encode())


def test_the_longest_path_names_the_callers_field() -> None:
    error = InvalidRequest("Wrong: `messages[1].content[0].text`.", param="messages[1].content[0].text")
    told = renamed(error, {"messages": "input", "messages[1]": "input[4]", "messages[1].cont": "no"})
    assert (told.param, told.message) == ("input[4].content[0].text", "Wrong: `input[4].content[0].text`.")
    assert renamed(error, {"messages[11]": "x"}) is error
