"""Bounds of a grammar, checked before it is compiled, since llguidance cannot be interrupted.

With them the worst known grammars compile, or are refused, within a second: tests/exams/hostile/grammars.py has them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.errors import InvalidRequest
from server.text.grammar.grammar import Grammar

MOST_CHARACTERS = 1 << 16
MOST_DEPTH = 64
"""Nested objects and arrays of a schema."""
MOST_REPEATS = 4096
"""Of `minItems` and the like, and of a repetition in a regular expression or in Lark."""
MOST_MULTIPLE = 20_000
"""The sum of the significant digits of every `multipleOf`, as integers: each is a state of an automaton."""
MOST_PATTERN_PROPERTIES = 64
"""Each is compared with every other."""
LEAST = ("minItems", "minLength", "minProperties")
REPEATS = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")


def check(grammar: Grammar) -> None:
    """Raise InvalidRequest if the grammar exceeds a bound; the message names it."""
    if len(grammar.text) > MOST_CHARACTERS:
        raise _refused(grammar, f"has {len(grammar.text)} characters; at most {MOST_CHARACTERS} are allowed")
    if grammar.kind == "json_schema":
        _check_schema(grammar, _parsed(grammar))
    elif grammar.kind == "choice":
        _check_choices(grammar)
    elif grammar.kind == "regex":
        _check_repeats(grammar, grammar.text)
    elif grammar.kind == "lark":
        _check_lark(grammar)


def _parsed(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.text)
    except RecursionError:
        raise _refused(grammar, f"is nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise _refused(grammar, f"is not JSON: {error}") from None


def _check_choices(grammar: Grammar) -> None:
    choices = _parsed(grammar)
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        raise _refused(grammar, "must be a list of at least one non-empty string")


def _check_schema(grammar: Grammar, schema: Any) -> None:
    if not isinstance(schema, dict):
        raise _refused(grammar, "must be a JSON schema, which is an object")
    multiples = patterns = 0
    for key, value in _members(grammar, schema):
        _check_keyword(grammar, key, value)
        if key == "multipleOf":
            multiples += _significant(value)
        if key == "patternProperties" and isinstance(value, dict):
            patterns += len(value)
    if multiples > MOST_MULTIPLE:
        raise _refused(grammar, f"has values of `multipleOf` whose digits add up to {multiples}, above {MOST_MULTIPLE}")
    if patterns > MOST_PATTERN_PROPERTIES:
        raise _refused(grammar, f"has {patterns} `patternProperties`; at most {MOST_PATTERN_PROPERTIES} are allowed")


def _check_keyword(grammar: Grammar, key: str, value: Any) -> None:
    if key in LEAST and isinstance(value, int | float) and value > MOST_REPEATS:
        raise _refused(grammar, f"has `{key}` {value}; at most {MOST_REPEATS} is allowed")
    if key == "pattern" and isinstance(value, str):
        _check_repeats(grammar, value)
    if key == "patternProperties" and isinstance(value, dict):
        for pattern in value:
            _check_repeats(grammar, pattern)


def _members(grammar: Grammar, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and value of every object in `schema`; refuses what is nested too deeply."""
    level: list[Any] = [schema]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                yield from one.items()
                below += one.values()
            elif isinstance(one, list):
                below += one
        level = below
    if any(isinstance(one, dict | list) for one in level):
        raise _refused(grammar, f"is nested more than {MOST_DEPTH} deep")


def _check_repeats(grammar: Grammar, text: str) -> None:
    for found in REPEATS.finditer(text):
        most = max(int(number) for number in found.groups() if number)
        if most > MOST_REPEATS:
            raise _refused(grammar, f"repeats {found[0]!r}; at most {MOST_REPEATS} times are allowed")


def _check_lark(grammar: Grammar) -> None:
    rules, decoder = "", json.JSONDecoder()
    rest = grammar.text
    while found := re.search(r"%json\s*", rest):
        try:
            schema, end = decoder.raw_decode(rest, found.end())
        except (ValueError, RecursionError):
            raise _refused(grammar, "has a %json that is not followed by a JSON schema") from None
        _check_schema(grammar, schema)
        rules, rest = rules + rest[: found.start()], rest[end:]
    rules += rest
    if re.search(r"\btemperature\s*=", rules):
        raise _refused(grammar, "has a `temperature` of its own, which is not supported")
    _check_repeats(grammar, rules)


def _significant(value: Any) -> int:
    """The digits of a number as an integer, without its point and its exponent; 0 for what is no number."""
    if not isinstance(value, int | float):
        return 0
    digits = re.sub(r"[eE].*|[^0-9]", "", repr(value)).strip("0")
    return int(digits or "0")


def _refused(grammar: Grammar, why: str) -> InvalidRequest:
    return InvalidRequest(f"{grammar.field} {why}.", param=grammar.field)
