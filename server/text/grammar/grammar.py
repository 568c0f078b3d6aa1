"""A grammar as a request names it, and its text in llguidance's own form."""

import json
import re
from typing import Any, Literal

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark
from msgspec import Struct

from server.errors import InvalidRequest

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


GUIDED = "%llguidance {}\n"
"""Says nothing to llguidance; xgrammar, which vLLM tries first, refuses it instead of reading Lark in its own way."""


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


def lark(grammar: Grammar) -> str:
    """A readable grammar as Lark for engines elsewhere; GUIDED lets only llguidance read it."""
    match grammar.kind:
        case "json_schema" | "json_object":
            schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
            text = "start: " + json_rule(schema if isinstance(schema, dict) else {})
        case "regex":
            text = f"start: TEXT\nTEXT: /{_between_slashes(grammar.text)}/"
        case "choice":
            text = f"start: TEXT\nTEXT: /{'|'.join(map(_escaped, json.loads(grammar.text)))}/"
        case "lark":
            text = any_to_lark(grammar.text)
    return text if "%llguidance" in text else GUIDED + text


def _between_slashes(pattern: str) -> str:
    """A regular expression as a Lark literal holds it: no slash or line end closes it early."""
    replaced = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}
    return re.sub(r"\\[\s\S]|[/\n\r]", lambda found: replaced.get(found[0], found[0]), pattern)


def _escaped(text: str) -> str:
    """A regular expression that matches `text` alone."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)
