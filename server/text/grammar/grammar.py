"""A grammar as a request names it, and its text in llguidance's own form."""

import json
from typing import Any, Literal

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark
from msgspec import Struct

from server.errors import InvalidRequest

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


class Grammar(Struct, frozen=True):
    """What a reply must match."""

    kind: Kind
    text: str = ""
    """A JSON schema, a regular expression, a JSON array of choices, or a grammar in Lark or GBNF."""
    field: str = "response_format"
    """The request's field, for error messages."""


def json_options() -> dict[str, Any]:
    """One spelling of each JSON text, that of Python's `json.dumps`; unsupported keywords are errors.

    Free white space costs tokens, and a small model can write it until `max_tokens`.
    """
    return {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "lenient": False,
        "coerce_one_of": False,
    }


def json_rule(schema: dict[str, Any]) -> str:
    """A JSON schema as an expression of a Lark grammar, in the spelling of `json_options`."""
    return "%json " + json.dumps({**schema, "x-guidance": json_options()})


def definition(grammar: Grammar) -> str:
    """The grammar in llguidance's form; InvalidRequest if it cannot be read."""
    try:
        return _definition(grammar)
    except (ValueError, RecursionError, IndexError, TypeError) as error:  # any_to_lark is a plain parser
        raise InvalidRequest(f"{grammar.field} cannot be read: {error}.", param=grammar.field) from None


def _definition(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=json_options())  # type: ignore[arg-type]
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=json_options())  # type: ignore[arg-type]
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_escaped, json.loads(grammar.text))))
        case "lark":
            return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))


def _escaped(text: str) -> str:
    """A regular expression that matches `text` alone."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)
