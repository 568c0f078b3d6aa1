"""The filters and tests that templates have, each of which pays for itself and for what it makes."""

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
TESTS_OF_NAMES = frozenset({"filter", "test"})  # would tell what this sandbox has
# Where a filter or test of Jinja wants more than its value.
FIRST: Mapping[str, Callable[[Any], Any]] = {
    "context": lambda context: context,
    "eval_context": lambda context: context.eval_ctx,
    "environment": lambda context: context.environment,
}


def filters(known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Jinja's filters that templates have."""
    kept = {name: known[name] for name in known if name in FILTERS}
    kept |= {"tojson": _tojson, "join": _join, "replace": _replace, "sum": _sum, "round": _round}
    return {name: _paid(filter) for name, filter in kept.items()}


def tests(known: Mapping[str, Any]) -> dict[str, Any]:
    """Likewise of its tests."""
    return {name: _paid(test) for name, test in known.items() if name not in TESTS_OF_NAMES}


def _paid(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that pays for itself and for what it makes; wherever it is named, `map` and blocks included."""
    wants = getattr(function, "jinja_pass_arg", None)
    first = FIRST[wants.name] if wants is not None else None

    @wraps(function)
    def paid(context: Any, *arguments: Any, **options: Any) -> Any:
        budget_of(context).step()
        given = (first(context), *arguments) if first else arguments
        return budget_of(context).made(function(*given, **options))

    return pass_context(paid)


@pass_context
def _join(context: Any, value: Any, d: Any = "") -> str:
    return str(d).join(map(str, joined(context, str(d), value)))


@pass_context
def _replace(context: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    replaced(context, str(text), old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _sum(values: Any, start: float = 0) -> Any:
    """Of numbers: the sum of lists copies each of them again and again."""
    found = [start, *values]
    if not all(isinstance(value, int | float) for value in found):
        raise SecurityError("`sum` is for numbers")
    return sum(found)


def _round(value: float, precision: int = 0) -> float:
    """Jinja's other two ways compute a power of ten as large as one likes."""
    return round(float(value), min(max(precision, -20), 20))


def joined(context: Any, joint: str, items: Any) -> list[Any]:
    """The items, once it is known that they fit when they are joined."""
    found = list(items)
    budget_of(context).fits(sum(len(str(item)) for item in found) + len(joint) * len(found))
    return found


def replaced(context: Any, text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    """Measure what a replacement makes."""
    times = text.count(str(old)) if old else len(text) + 1
    budget_of(context).fits(len(text) + times * len(str(new)))


@pass_context
def _tojson(context: Any, value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter would escape HTML, and models were trained without that."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("`tojson` indents by 16 at most")
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent).iterencode(value):
        size += len(piece)
        budget_of(context).fits(size)
        pieces.append(piece)
    return "".join(pieces)
