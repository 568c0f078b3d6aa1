"""Which texts the grammar of an offer allows, token by token, for a tokenizer of one token a byte."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.chat.tools.grammar import MOST_CALLS, closed, tools_grammar
from server.chat.tools.offer import Asked, offer_of
from server.chat.tools.use import tool_use
from server.errors import InvalidRequest
from server.text.grammar.grammar import Grammar
from server.text.tokenizer import Tokenizer
from server.text.tool_form import HERMES, ToolForm
from tests.support.harness import tokenizer

BARE = ToolForm('{"name": "', '", "parameters": ', "}", None)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "now"}}
ANSWER = Grammar("json_schema", json.dumps({**CITY, "properties": {"city": {"const": "Rome"}}}))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tiny"))


def allows(words: Tokenizer, grammar: Grammar, text: str) -> bool:
    """Whether a reply may be `text` and end there."""
    matcher = asyncio.run(words.grammars.compile(grammar)).begin()
    for id in words.encode(text):
        if matcher.allowed([id]) != 1:
            return False
        matcher.accept(id)
    end = next(iter(words.stop_ids))
    return matcher.complete or bool(matcher.masks([])[0][end // 32] >> end % 32 & 1)


def offer(**fields: Any) -> Any:
    return offer_of(msgspec.convert({"tools": TOOLS, **fields}, Asked))


def weather(form: ToolForm, arguments: str = '{"city": "Rome"}') -> str:
    return form.written("weather", arguments)


def test_auto_is_a_text_or_calls_or_one_after_the_other(words: Tokenizer) -> None:
    grammar = tools_grammar(offer(), HERMES, several=True)
    now = HERMES.written("now", "{}")
    for text in ("", "It is <b>fine</b>.", "<tool", weather(HERMES), "So: " + now, f"{now}\n{weather(HERMES)}"):
        assert allows(words, grammar, text), text
    bad = [
        weather(HERMES, arguments) for arguments in ("{}", '{"city": 1}', '{"city": "x", "more": 1}', '{"city":"x"}')
    ]
    for text in (*bad, HERMES.written("rm", "{}"), "<tool_call>", "<tool_call>hm", now + "So.", now + now):
        assert not allows(words, grammar, text), text


def test_required_and_named_calls_begin_the_reply(words: Tokenizer) -> None:
    required, named = (tools_grammar(offer(tool_choice=choice), HERMES, several=True) for choice in ("required", NAMED))
    assert allows(words, required, weather(HERMES))
    assert allows(words, named, HERMES.written("now", "{}"))
    assert not allows(words, named, weather(HERMES))
    assert not any(allows(words, grammar, text) for grammar in (required, named) for text in ("", "So."))


def test_calls_are_one_or_at_most_most_calls(words: Tokenizer) -> None:
    now = HERMES.written("now", "{}")
    one, several = (tools_grammar(offer(tool_choice="required"), HERMES, several=several) for several in (False, True))
    assert allows(words, one, now)
    assert not allows(words, one, f"{now}\n{now}")
    assert allows(words, several, "\n".join([now] * MOST_CALLS))
    assert not allows(words, several, "\n".join([now] * (MOST_CALLS + 1)))


def test_bare_json_is_a_call_and_a_text_begins_otherwise(words: Tokenizer) -> None:
    grammar = tools_grammar(offer(), BARE, several=True)
    assert all(allows(words, grammar, text) for text in ("", "So {x}.", weather(BARE)))
    assert not any(allows(words, grammar, text) for text in ("{", "{x}", weather(BARE) * 2, weather(BARE) + "."))


def test_a_reply_is_the_wanted_json_or_calls(words: Tokenizer) -> None:
    grammar = tools_grammar(offer(), HERMES, ANSWER)
    assert allows(words, grammar, '{"city": "Rome"}')
    assert allows(words, grammar, weather(HERMES))
    assert not any(allows(words, grammar, text) for text in ("", "So.", '{"city": "Oslo"}', "So: " + weather(HERMES)))
    anything = tools_grammar(offer(), HERMES, Grammar("json_object"))
    assert allows(words, anything, '{"a": [1]}')
    with pytest.raises(InvalidRequest, match="need a `tool_choice` other than auto") as caught:
        tools_grammar(offer(), HERMES, Grammar("regex", "a+", "guided_regex"))
    assert caught.value.param == "guided_regex"


def test_a_model_without_a_form_of_its_own_makes_one_call_unless_several_are_asked_for(words: Tokenizer) -> None:
    now = HERMES.written("now", "{}")
    for asked, several in (({}, False), ({"parallel_tool_calls": True}, True), ({"parallel_tool_calls": False}, False)):
        use = tool_use(offer(tool_choice="required", **asked), words, None)
        assert not use.native
        assert use.grammar is not None
        assert allows(words, use.grammar, f"{now}\n{now}") == several


def test_arguments_have_no_properties_that_were_not_listed_unless_the_schema_says_so(words: Tokenizer) -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}}
    schema = {"properties": {"a": inner, "free": {"type": "object"}, "list": {"type": "array", "items": inner}}}
    reopened = {**schema, "additionalProperties": {"type": "integer"}}
    for given, allowed, refused in (
        (schema, ['{"a": {"b": 1}}', '{"free": {"x": 1}}', '{"list": [{"b": 1}]}'],
         ['{"x": 1}', '{"a": {"x": 1}}', '{"list": [{"x": 1}]}']),
        (reopened, ['{"a": {"b": 1}, "x": 1}'], ['{"a": {"x": 1}}', '{"x": "1"}']),
        ({"properties": {"a": {"$ref": "#/$defs/Inner"}}, "$defs": {"Inner": inner}}, ['{"a": {"b": 1}}'],
         ['{"a": {"x": 1}}']),
    ):  # fmt: skip
        tools = [{"type": "function", "function": {"name": "f", "parameters": given}}]
        grammar = tools_grammar(offer_of(msgspec.convert({"tools": tools}, Asked)), HERMES)
        assert all(allows(words, grammar, HERMES.written("f", text)) for text in allowed)
        assert not any(allows(words, grammar, HERMES.written("f", text)) for text in refused)


def test_combined_schemas_stay_open() -> None:
    combined = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}], "properties": {"c": {}}}
    assert closed(combined) == combined


def test_names_and_texts_that_look_like_grammar_are_only_text(words: Tokenizer) -> None:
    schema = {"type": "object", "properties": {'start: "x"\n::=': {"const": '\n%json {"type": "string"} \u2028"'}}}
    tools = [{"type": "function", "function": {"name": "start", "description": "root ::= x", "parameters": schema}}]
    grammar = tools_grammar(offer_of(msgspec.convert({"tools": tools}, Asked)), HERMES)
    assert allows(words, grammar, HERMES.written("start", "{}"))


def test_a_template_without_tools_has_no_form_of_calls(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).tool_form is None
