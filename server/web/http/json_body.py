"""Request bodies as JSON, decoded strictly and read as a struct; a fault raises InvalidRequest naming the field."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from server.errors import InvalidRequest

Fields = TypeVar("Fields")
SHOWN = 64  # characters of a client's field name that an error repeats


def decode(body: bytes) -> Any:
    """Strictly decode JSON: UTF-8, no duplicate keys, no lone surrogates, bounded nesting and numbers."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=unique)
        if b"\\u" in body:  # only an escape can be a lone surrogate
            check_unicode(value)
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except ValueError:
        raise InvalidRequest("The body has a number with too many digits.") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its members; raises InvalidRequest for a duplicate or invalid key."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if not unicode(name):
            raise InvalidRequest("A lone surrogate is not text.", param=name[:SHOWN])
        if name in fields:
            raise InvalidRequest(f"The field {name[:SHOWN]!r} appears twice in one object.", param=name[:SHOWN])
        fields[name] = value
    return fields


def check_unicode(value: Any, path: str = "") -> None:
    """Raise InvalidRequest with the path of the first string that is not valid Unicode."""
    if isinstance(value, str) and not unicode(value):
        raise InvalidRequest("A lone surrogate is not text.", param=path or None)
    if isinstance(value, dict):
        for name, inner in value.items():
            check_unicode(inner, f"{path}.{name[:SHOWN]}".removeprefix("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_unicode(inner, f"{path}[{index}]")


def unicode(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_fields(body: bytes, kind: type[Fields]) -> Fields:
    """The struct of `kind` in `body`."""
    return convert(decode(body), kind)


def convert(
    value: Any, kind: type[Fields], allowed: Mapping[str, str] = MappingProxyType({}), place: str = ""
) -> Fields:
    """A decoded `value` as `kind`; `allowed` are the values of enumerated fields, by name, `place` the value's path."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise explain(str(error), allowed, place) from None


def explain(message: str, allowed: Mapping[str, str] = MappingProxyType({}), place: str = "") -> InvalidRequest:
    """The error for msgspec's message, with the field's path as `param` and without the caller's values."""
    what, _, inner = message.replace(" - at `key` in `$", " - at `$").partition(" - at `$")
    path = place + inner.rstrip("`")
    if field := re.search(r"(?:unknown|required) field `(.*)`$", what, re.DOTALL):
        path = f"{path}.{field[1][:SHOWN]}"
    path = path.removeprefix(".")
    if what.startswith("Invalid enum value"):
        what = f"Invalid value{', expected ' + allowed[last] if (last := path.rsplit('.')[-1]) in allowed else ''}"
    elif "unknown field" in what:
        what = "Unknown field"
    return InvalidRequest(f"{what}: `{path}`." if path else f"{what}.", param=path or None)
