"""The filters and tests that templates may use; each is charged for its call and its result."""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError

from server.text.budget import budget_of

FILTERS = frozenset(
    {
        *("abs", "attr", "bool", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
        *("forceescape", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min"),
        *("reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
        *("sum", "title", "tojson", "trim", "unique", "upper"),
    }
)
INTROSPECTION = frozenset({"filter", "test"})  # tests that reveal which filters and tests exist
# The first argument that some of Jinja's filters and tests take before the value.
PASSED: Mapping[str, Callable[[Any], Any]] = {
    "context": lambda context: context,
    "eval_context": lambda context: context.eval_ctx,
    "environment": lambda context: context.environment,
}


def bounded_filters(known: Mapping[str, Any]) -> dict[str, Any]:
    """The allowed ones of Jinja's filters `known`, charged; some replaced by bounded versions."""
    kept = {name: known[name] for name in known if name in FILTERS}
    kept |= {"tojson": _tojson, "join": _join, "replace": _replace, "sum": _sum, "round": _round}
    return {name: _charged(filter) for name, filter in kept.items()}


def bounded_tests(known: Mapping[str, Any]) -> dict[str, Any]:
    """The allowed ones of Jinja's tests `known`, charged."""
    return {name: _charged(test) for name, test in known.items() if name not in INTROSPECTION}


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, charged for its call and its result wherever it is used, in `map` and filter blocks too."""
    wants = getattr(function, "jinja_pass_arg", None)
    passed = PASSED[wants.name] if wants is not None else None

    @wraps(function)
    def charged(context: Any, *arguments: Any, **options: Any) -> Any:
        budget_of(context).charge_steps()
        given = (passed(context), *arguments) if passed else arguments
        return budget_of(context).charged(function(*given, **options))

    return pass_context(charged)


@pass_context
def _join(context: Any, value: Any, d: Any = "") -> str:
    return str(d).join(map(str, joinable(context, str(d), value)))


@pass_context
def _replace(context: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    check_replacement(context, str(text), old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _sum(values: Any, start: float = 0) -> Any:
    """The sum of numbers only: summing lists copies them quadratically."""
    found = [start, *values]
    if not all(isinstance(value, int | float) for value in found):
        raise SecurityError("`sum` is for numbers")
    return sum(found)


def _round(value: float, precision: int = 0) -> float:
    """Plain rounding: Jinja's `ceil` and `floor` compute an unbounded power of ten."""
    return round(float(value), min(max(precision, -20), 20))


def joinable(context: Any, joint: str, items: Any) -> list[Any]:
    """`items` as a list; raises SecurityError if their text joined by `joint` would exceed the budget."""
    found = list(items)
    budget_of(context).check_size(sum(len(str(item)) for item in found) + len(joint) * len(found))
    return found


def check_replacement(context: Any, text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    """SecurityError where `text` is too long once `old` is replaced by `new`."""
    times = text.count(str(old)) if old else len(text) + 1
    budget_of(context).check_size(len(text) + times * len(str(new)))


@pass_context
def _tojson(context: Any, value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON, as models were trained on: Jinja's own filter escapes HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("`tojson` takes an indent of 0 to 16")
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent).iterencode(value):
        size += len(piece)
        budget_of(context).check_size(size)
        pieces.append(piece)
    return "".join(pieces)
