"""The fields of a skill's file with their documentation: the docstrings of `Skill`, so that page and code agree."""

import ast
import inspect
import sys
import textwrap
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

from server.skills.skill import Skill

EXPERT = frozenset(
    {
        "aliases",
        "site_keys",
        "image_origins",
        "keys",
        "identity",
        "sources",
        "encoder",
        "system_file",
        "gate",
        "experiment",
    }
)
"""Fields that a form shows last."""


def fields(kind: type[Struct] = Skill) -> list[dict[str, Any]]:
    """Each field: name, documentation, default, and its JSON schema; own fields before inherited ones."""
    schemas = msgspec.json.schema(kind)
    schemas = schemas["$defs"][kind.__name__]["properties"]
    names = {item.name: item for item in msgspec.structs.fields(kind)}
    ordered = dict.fromkeys((*kind.__annotations__, *names))
    documented = documentation(kind)
    return [
        {
            "name": name,
            "about": documented.get(name, ""),
            "default": None if (default := names[name].default) is NODEFAULT else msgspec.to_builtins(default),
            "required": names[name].required,
            "expert": name in EXPERT,
            "schema": schemas[name],
        }
        for name in ordered
        if name in names
    ]


def documentation(kind: type[Struct]) -> dict[str, str]:
    """The string literal after each field, by the field's name, of the class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (issubclass(base, Struct) and base is not Struct and base.__module__ in sys.modules):
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(about))):
                    found[name] = inspect.cleandoc(about)
    return found
