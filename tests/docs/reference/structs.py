"""The fields of msgspec structs as tables: name, kind, default, and the string literal that follows each field."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec import inspect as kinds

from tests.docs.reference.markdown import prose, table


@dataclass(frozen=True)
class Root:
    """A struct that a page begins with, and the word before its tag in headings."""

    kind: type[Struct]
    title: str


@dataclass
class Page:
    """The sections written so far, in order, by struct."""

    done: dict[type, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)


def sections(roots: Sequence[Root]) -> str:
    """Every struct that `roots` lead to, each once, in the order in which a reader meets it."""
    page, waiting = Page(), [(root.kind, heading(root.kind, root.title)) for root in roots]
    while waiting:
        kind, title = waiting.pop(0)
        if kind not in page.done:
            page.done[kind] = section(kind, title, page)
            waiting = [*nested(kind), *waiting]
    return "\n\n".join(page.done.values())


def every(root: type[Struct]) -> list[type[Struct]]:
    """`root` and all structs that its fields lead to."""
    found, waiting = [], [root]
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found.append(kind)
            waiting += [inner for inner, _ in nested(kind)]
    return found


def section(kind: type[Struct], title: str, page: Page) -> str:
    """One struct: its heading, its docstring, the paper if it is a technique, and a table of its fields."""
    config = kind.__struct_config__
    parts = [f"## {title}", prose(inspect.getdoc(kind) or "")]
    module = sys.modules[kind.__module__]
    if kind.__module__.startswith("pruning.techniques") and kind.__module__ not in page.modules:
        page.modules.add(kind.__module__)
        parts.insert(1, prose(module.__doc__ or ""))
    rows = [row(item, documented(kind).get(item.name, "")) for item in fields(kind)]
    if config.tag_field:
        rows.insert(0, (f"`{config.tag_field}`", f'`"{config.tag}"`', "required", ""))
    return "\n\n".join([*parts, table(("field", "kind", "default", "meaning"), rows)])


def row(item: msgspec.structs.FieldInfo, doc: str) -> tuple[str, str, str, str]:
    return f"`{item.encode_name}`", described(kinds.type_info(item.type), word(item)), default(item), prose(doc)


def heading(kind: type[Struct], title: str) -> str:
    """`Stage layerwise` for a tagged struct, `Calibration` for another; the root keeps its own title."""
    tag = kind.__struct_config__.tag
    return f"{title} {tag}" if tag else title


def fields(kind: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a struct, its own before inherited ones, as in the errors for unknown fields."""
    found = {item.name: item for item in msgspec.structs.fields(kind)}
    return tuple(found[name] for name in dict.fromkeys((*kind.__annotations__, *found)) if name in found)


def nested(kind: type[Struct]) -> Iterator[tuple[type[Struct], str]]:
    """The structs that the fields of `kind` lead to, with their headings."""
    for item in fields(kind):
        for inner in structs(kinds.type_info(item.type)):
            yield inner.cls, named(inner, word(item))


def word(item: msgspec.structs.FieldInfo) -> str:
    """What one value of a field is called in headings: `stages` holds a `Stage`."""
    return item.encode_name.removesuffix("s").capitalize()


def named(inner: kinds.StructType, called: str) -> str:
    return f"{called} {inner.tag}" if inner.tag else inner.cls.__name__


def structs(kind: kinds.Type) -> Iterator[kinds.StructType]:
    """The structs in a field's type, through unions, lists and constraints."""
    if isinstance(kind, kinds.StructType):
        yield kind
    elif isinstance(kind, kinds.Metadata):
        yield from structs(kind.type)
    elif isinstance(kind, kinds.UnionType):
        for option in kind.types:
            yield from structs(option)
    elif isinstance(kind, kinds.VarTupleType | kinds.ListType):
        yield from structs(kind.item_type)


@cache
def documented(kind: type[Struct]) -> dict[str, str]:
    """Field -> the string literal below it, of `kind` and of the structs that it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is Struct or not issubclass(base, Struct):
            continue
        tree = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        (body,) = [n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == base.__name__]
        for here, after in pairwise(body):
            match here, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def default(item: msgspec.structs.FieldInfo) -> str:
    """The default as TOML has it, or `required`."""
    if item.default_factory is not NODEFAULT:
        value = item.default_factory()
    elif item.default is NODEFAULT:
        return "required"
    else:
        value = item.default
    if value is None:
        return "none"
    if isinstance(value, Struct):
        return "empty"
    return f"`{msgspec.json.encode(value, enc_hook=str).decode()}`"


def described(kind: kinds.Type, called: str) -> str:
    """A field's type and bounds in words; a struct is a link to its section."""
    match kind:
        case kinds.Metadata(type=inner, extra_json_schema=schema):
            text = described(inner, called)
            return f"{text} ({schema['description']})" if schema else text
        case kinds.UnionType(types=options):
            return " or ".join(described(option, called) for option in options if option != kinds.NoneType())
        case kinds.VarTupleType(item_type=item) | kinds.ListType(item_type=item):
            return f"list of {plural(described(item, called))}{lengths(kind)}"
        case kinds.DictType(value_type=value):
            return f"table of {described(value, called)}"
        case kinds.StructType():
            title = named(kind, called)
            return f"[{title}](#{title.lower().replace(' ', '-')})"
    return simple(kind)


def simple(kind: kinds.Type) -> str:
    """A type that holds no other."""
    match kind:
        case kinds.LiteralType(values=values):
            return ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in values)
        case kinds.IntType():
            return f"whole number{bounds(kind)}"
        case kinds.FloatType():
            return f"number{bounds(kind)}"
        case kinds.StrType():
            return f"text{lengths(kind)}" + (f" like `{kind.pattern}`" if kind.pattern else "")
    return {kinds.BoolType: "`true`, `false`", kinds.CustomType: "path"}[type(kind)]


def plural(text: str) -> str:
    return re.sub(r"^(whole number|number|text|path)\b", r"\1s", text)


def bounds(kind: Any) -> str:
    """The interval that a number lies in."""
    words = [
        f" {word} {limit:,}" if isinstance(limit, int) else f" {word} {limit:g}"
        for word, limit in (("from", kind.ge), ("above", kind.gt), ("to", kind.le), ("below", kind.lt))
        if limit is not None
    ]
    return "".join(words) + (f", a multiple of {kind.multiple_of}" if kind.multiple_of else "")


def lengths(kind: Any) -> str:
    """How long a text or list may be."""
    least, most = kind.min_length, kind.max_length
    parts = [
        f"at least {least}" if (least or 0) > 1 else "not empty" if least else "",
        f"at most {most}" if most else "",
    ]
    said = ", ".join(part for part in parts if part)
    return f", {said}" if said else ""
