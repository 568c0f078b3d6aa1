"""Structured output as requests ask for it: OpenAI's `response_format`, and vLLM's and llama.cpp's names."""

import json
from typing import Any, Literal

from msgspec import Struct, field

from server.chat.request import Grammar, Kind
from server.errors import InvalidRequest
from server.web.api.openai.fields import Tolerant


class JsonSchema(Struct, frozen=True):
    """A named schema; `strict` changes nothing, since every reply matches."""

    schema: dict[str, Any] | None = None
    """The JSON schema, which OpenAI's clients always send."""
    name: str = ""
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """The form of a reply."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    """Of `json_schema`."""
    schema: dict[str, Any] | None = None
    """Of `json_object`, as llama.cpp takes one."""


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """What a reply must match (vLLM); one of its fields."""

    json: dict[str, Any] | str | None = None
    """A JSON schema, as an object or as text."""
    json_object: bool | None = None
    """Whether the reply is any JSON object."""
    regex: str | None = None
    """A regular expression that the whole reply matches."""
    choice: list[str] | None = None
    """Texts of which the reply is one."""
    grammar: str | None = None
    """A grammar in Lark or GBNF."""
    disable_any_whitespace: bool | None = None
    """Changes nothing: white space is always fixed."""
    disable_fallback: bool | None = None
    """Changes nothing: there is no fallback."""


class StructuredFields(Tolerant, frozen=True, kw_only=True):
    """The fields that constrain a reply; at most one may do so."""

    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    structured_outputs: StructuredOutputs = field(default_factory=StructuredOutputs)
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def constraint(self) -> Grammar | None:
        """What the reply must match, or None; raises InvalidRequest for two of them."""
        nested = self.structured_outputs
        found = [
            *_format(self.response_format),
            *_grammar("json_schema", nested.json, "structured_outputs.json"),
            *_grammar("regex", nested.regex, "structured_outputs.regex"),
            *_grammar("choice", nested.choice, "structured_outputs.choice"),
            *_grammar("lark", nested.grammar, "structured_outputs.grammar"),
            *([Grammar("json_object", "", "structured_outputs.json_object")] if nested.json_object else []),
            *_grammar("json_schema", self.guided_json, "guided_json"),
            *_grammar("regex", self.guided_regex, "guided_regex"),
            *_grammar("choice", self.guided_choice, "guided_choice"),
            *_grammar("lark", self.guided_grammar, "guided_grammar"),
            *_grammar("json_schema", self.json_schema, "json_schema"),
            *_grammar("lark", self.grammar, "grammar"),
        ]
        if len(found) > 1:
            names = " and ".join(f"`{grammar.field}`" for grammar in found)
            raise InvalidRequest(f"Set one of {names}: a reply matches one grammar.", param=found[1].field)
        return found[0] if found else None


def _format(wanted: ResponseFormat) -> list[Grammar]:
    """The grammar of a `response_format`, if it has one."""
    if wanted.type == "text":
        return []
    if wanted.type == "json_object":
        where = "response_format.schema"
        return _grammar("json_schema", wanted.schema, where) or [Grammar("json_object")]
    where = "response_format.json_schema.schema"
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest(f"`{where}` is missing: it is the JSON schema that the reply must match.", param=where)
    return _grammar("json_schema", wanted.json_schema.schema, where)


def _grammar(kind: Kind, value: dict[str, Any] | list[str] | str | None, where: str) -> list[Grammar]:
    """The grammar of a field, if it asks for one."""
    if value is None or value in ("", []):
        return []
    return [Grammar(kind, value if isinstance(value, str) else json.dumps(value), where)]
