"""Reads a TOML file as a msgspec struct; an error names the file, the field, what is allowed, and a likely typo."""

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.inspect import DictType, ListType, LiteralType, StructType, Type, UnionType, VarTupleType, type_info

from server.errors import ConfigError

T = TypeVar("T")
FILE = "file:"
"""Begins a value that is read from a file, so that settings hold no secret."""
ENVIRONMENT = "env:"
"""Begins a value that is read from an environment variable."""


def read(path: Path, kind: type[T]) -> T:
    """Decode the TOML file `path` as a struct of `kind`; raises ConfigError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return decode(content, kind, str(path))


def decode(content: bytes, kind: type[T], where: str) -> T:
    """Decode TOML as a struct of `kind`; raises ConfigError, which begins with `where`."""
    try:
        return msgspec.toml.decode(content, type=kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(str(error), kind)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None


def secret(value: str) -> str:
    """The text of the file PATH if `value` is `file:PATH`, else `value`; raises ConfigError, which never quotes it."""
    if not value.startswith(FILE):
        return value
    path = Path(value.removeprefix(FILE))
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text") from None
    if not text:
        raise ConfigError(f"{path} is empty: it must hold the value")
    return text


def kept_elsewhere(value: str) -> str:
    """The secret that `file:PATH` or `env:NAME` names; raises ConfigError, which never quotes it."""
    if value.startswith(ENVIRONMENT):
        name = value.removeprefix(ENVIRONMENT)
        if not (text := os.environ.get(name, "").strip()):
            raise ConfigError(f"the environment variable {name} is empty or not set")
        return text
    if not value.startswith(FILE):
        raise ConfigError("a secret is kept outside the settings: write file:PATH or env:NAME")
    return secret(value)


def explain(message: str, kind: type) -> str:
    """msgspec's message, always with the field's path, and with the known names or values where one is unknown."""
    message = message if "`$" in message else f"{message} - at `$`"
    where = message.rpartition("`$")[2].rstrip("`")
    if found := re.search(r"unknown field `(.*?)` - at", message):
        names = _fields(_type_at(kind, where), kind)
        return f"{message}; {nearest(found[1], names, '`')}known fields are {', '.join(names)}"
    if found := re.search(r"Invalid enum value '?(.*?)'? - at", message):
        values = [str(value) for value in _values(_type_at(kind, where))]
        return f"{message}; {nearest(found[1], values, repr(''))}allowed are {', '.join(values)}"
    return message.replace(" | null", "")  # TOML has no null


def _path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str) and value:
        return Path(value.removeprefix(FILE))
    raise ValueError("Expected a path")


def nearest(wrong: str, known: Collection[str], quotes: str) -> str:
    """`did you mean X? ` for the known word most like `wrong`, between `quotes`; empty if none is like it."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return f"did you mean {quotes[0]}{near[0]}{quotes[0]}? " if near else ""


def _type_at(kind: type, where: str) -> Type | None:
    """The description of the type at a path such as `.examples[0]`; None if it leads nowhere."""
    found: Type | None = type_info(kind)
    for step in re.findall(r"\.\w+|\[[^]]*\]", where):
        found = _member(found, step)
    return found


def _member(outer: Type | None, step: str) -> Type | None:
    match outer:
        case UnionType():
            return next((found for one in outer.types if (found := _member(one, step)) is not None), None)
        case StructType():
            return next((field.type for field in outer.fields if field.encode_name == step[1:]), None)
        case ListType() | VarTupleType():
            return outer.item_type
        case DictType():
            return outer.value_type
    return None


def _members(found: Type | None) -> list[Type]:
    return list(found.types) if isinstance(found, UnionType) else [found] if found is not None else []


def _fields(found: Type | None, root: type) -> list[str]:
    """The fields of the struct described by `found`, or else of `root`; its own before inherited ones."""
    kind = next((one.cls for one in _members(found) if isinstance(one, StructType)), root)
    return list(dict.fromkeys((*kind.__annotations__, *(field.name for field in msgspec.structs.fields(kind)))))


def _values(found: Type | None) -> list[Any]:
    return [value for one in _members(found) if isinstance(one, LiteralType) for value in one.values]
