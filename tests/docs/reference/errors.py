"""The tree of errors, and every error code with its status and sentence, read from the sources."""

import ast
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from typing import NamedTuple

from server.commands.start.codes import CODES
from server.errors import RequestError, SecateurError
from tests.conftest import ROOT
from tests.docs.reference.markdown import prose, table

SOURCES = sorted(path for top in ("server", "pruning") for path in (ROOT / top).rglob("*.py"))
HEADINGS = ("code", "status", "type", "message", "what to do")


class Code(NamedTuple):
    """One place that answers with a code."""

    code: str
    raised: str
    sentence: str


def sections() -> str:
    """The codes that callers meet, the classes that requests end in, and the other ones."""
    kinds = classes()
    asked = [kind for kind in kinds if issubclass(kind, RequestError) and kind is not RequestError]
    other = [kind for kind in kinds if not issubclass(kind, RequestError) and kind is not SecateurError]
    return "\n\n".join(
        [
            "## Error codes",
            table(
                ("code", "status", "type", "message", "what to do"), code_rows({kind.__name__: kind for kind in kinds})
            ),
            "## Classes of refused requests",
            table(
                ("class", "status", "type", "meaning"),
                [(f"`{k.__name__}`", str(k.status), f"`{k.type}`", said(k)) for k in asked],
            ),
            "## Other errors",
            table(
                ("class", "of", "meaning"),
                [(f"`{k.__name__}`", f"`{k.__base__.__name__}`", said(k)) for k in other if k.__base__],
            ),
        ]
    )


def said(kind: type) -> str:
    return prose(getdoc(kind) or "")


def classes() -> list[type[SecateurError]]:
    """Every class of the tree, parents first; the files that define one are imported."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.ClassDef) and raises(node) for node in tree.body):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found, waiting = [], [SecateurError]
    while waiting:
        found.append(waiting.pop(0))
        waiting = [*sorted(found[-1].__subclasses__(), key=lambda kind: kind.__name__), *waiting]
    return [kind for kind in found if kind.__module__.split(".")[0] in ("server", "pruning")]


def raises(node: ast.ClassDef) -> bool:
    """Whether a class may be an error: it extends something that is named like one of the tree's."""
    names = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return bool(names & {kind.__name__ for kind in family(SecateurError)})


def family(kind: type[SecateurError]) -> Iterator[type[SecateurError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def code_rows(kinds: dict[str, type[SecateurError]]) -> list[tuple[str, str, str, str, str]]:
    """One row for each code and status, with every sentence that carries it, or what its class says, and the advice."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for code in codes():
        kind = kinds[code.raised]
        status = "405" if kind is RequestError else str(kind.status)  # the router's own refusal
        rows.setdefault((code.code, status, kind.type), []).append(
            (code.sentence.strip(". ") and code.sentence) or said(kind)
        )
    return [
        (f"`{code}`", status, f"`{kind}`", " / ".join(dict.fromkeys(texts)), prose(CODES[code].remedy))
        for (code, status, kind), texts in sorted(rows.items())
    ]


def codes() -> Iterator[Code]:
    """Every `code="..."` in the sources, with the class that carries it and the sentence before it."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        inside = {
            id(call): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for call in ast.walk(node)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call):
                given = {word.arg: word.value for word in call.keywords}
                value = given.get("code")
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    name = call.func.id if isinstance(call.func, ast.Name) else inside[id(call)]
                    yield Code(value.value, name, sentence(call.args[0]) if call.args else "")


def sentence(node: ast.expr) -> str:
    """The text of a message, with `...` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return ""
