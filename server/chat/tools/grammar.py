"""The grammar of a reply that may or must call functions: the model's own form around arguments of each JSON schema."""

import json
from collections.abc import Sequence
from typing import Any

from server.chat.tools.offer import Offer, Tool
from server.errors import InvalidRequest
from server.text.grammar.grammar import Grammar, json_rule
from server.text.tool_form import ToolForm

OPEN = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
)
"""Keywords beside which `properties` are not all that an object may have."""
MOST_CALLS = 16
"""Of one reply: a small model can repeat a call until `max_tokens`."""


def tools_grammar(offer: Offer, form: ToolForm, instead: Grammar | None = None, *, several: bool = False) -> Grammar:
    """The grammar of a reply to `offer`, with calls written as `form`, `several` if the form allows.

    `instead` is what a reply without calls matches, None for any text. Raises InvalidRequest if that is no JSON.
    """
    several = several and form.between is not None
    start = _start(form, required=offer.required, instead=instead)
    lines = [*start, *_calls(offer.callable, form), _further(form, several=several)]
    return Grammar("lark", "\n".join(lines), "tools")


def _start(form: ToolForm, *, required: bool, instead: Grammar | None) -> list[str]:
    """The rules up to the name of the first call: at once if `required`, else behind or instead of a text."""
    begun, trigger = form.before, form.trigger
    if required:
        return [f"start: {_literal(begun)} call further"]
    if instead is not None:
        return [f"start: reply | {_literal(begun)} call further", f"reply: {json_rule(_schema(instead))}"]
    if not trigger:  # bare JSON: a text begins in another way
        return [f"start: TEXT | {_literal(begun)} call further", r"TEXT: /([^{](.|\n)*)?/"]
    rest = begun.partition(trigger)[2]
    return [
        f"start: TEXT | lead {_literal(rest)} call further",
        f"lead[lazy]: TEXT {_literal(trigger)}",
        r"TEXT: /(.|\n)*/",
    ]


def _schema(grammar: Grammar) -> dict[str, Any]:
    """The JSON schema of a grammar; raises InvalidRequest for a grammar of another kind."""
    if grammar.kind == "json_object":
        return {"type": "object"}
    if grammar.kind != "json_schema":
        raise InvalidRequest(
            f"`{grammar.field}` and `tools` need a `tool_choice` other than auto: only JSON goes with optional calls.",
            param=grammar.field,
        )
    try:
        schema = json.loads(grammar.text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"`{grammar.field}` must be a JSON schema, which is an object.", param=grammar.field)
    return schema


def _calls(tools: Sequence[Tool], form: ToolForm) -> list[str]:
    """One rule for each tool, from its name to the end of the call."""
    names = [f"call_{index}" for index in range(len(tools))]
    rules = [
        f"{name}: {_literal(tool.name + form.middle)} {name}_arguments {_literal(form.after)}\n"
        f"{name}_arguments: {json_rule(closed(tool.schema))}"
        for name, tool in zip(names, tools, strict=True)
    ]
    return [f"call: {' | '.join(names)}", *rules]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose objects have no properties but the listed ones, unless it says otherwise.

    JSON Schema allows any others, and a small model invents them. Schemas that are combined stay open.
    """
    found = {name: _closed_within(name, value) for name, value in schema.items()}
    open_ended = OPEN & schema.keys() or not isinstance(schema.get("properties"), dict)
    return found if open_ended else {**found, "additionalProperties": False}


def _closed_within(keyword: str, value: Any) -> Any:
    """The value of a schema's keyword, with the schemas within it closed."""
    if keyword in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: closed(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}
    return closed(value) if keyword == "items" and isinstance(value, dict) else value


def _further(form: ToolForm, *, several: bool) -> str:
    """The rule of what may follow a call."""
    if not several:
        return 'further: ""'
    return f"further: ({_literal((form.between or '') + form.before)} call){{0,{MOST_CALLS - 1}}}"


def _literal(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text)
