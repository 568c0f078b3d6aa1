"""The fields that constrain a reply, read as grammars."""

from typing import Any

import pytest

from server.chat.request import Grammar
from server.errors import InvalidRequest
from server.web.api.openai.structured import StructuredFields
from server.web.http.json_body import convert

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
TEXT = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}'


def constraint(**fields: Any) -> Grammar | None:
    return convert(fields, StructuredFields).constraint


@pytest.mark.parametrize(
    ("fields", "kind", "text", "field"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            TEXT,
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", TEXT, "response_format.schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"json": TEXT}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]', "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "lark", 'root ::= "a"', "structured_outputs.grammar"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"', "guided_grammar"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"grammar": 'root ::= "a"'}, "lark", 'root ::= "a"', "grammar"),
    ],
)
def test_each_field_is_a_grammar(fields: dict[str, Any], kind: Any, text: str, field: str) -> None:
    assert constraint(**fields) == Grammar(kind, text, field)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": True}},
        {"guided_choice": [], "guided_regex": ""},
    ],
)
def test_what_asks_for_nothing_constrains_nothing(fields: dict[str, Any]) -> None:
    assert constraint(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": [1]}}, "structured_outputs.json"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_a_fault_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint(**fields)
    assert caught.value.param == param
