"""The tree of the sources three levels deep, from the first sentence of each folder's and module's docstring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MARK = "<!-- tree -->"
DEPTH = 3
OTHERS = {
    "widget": "the chat widget: TypeScript, built by esbuild into server/web/assets/widget/",
    "tests": "by room, as the sources; reference/ has the formulas as plain loops, exams/ kills and floods servers",
    "deploy": "container image, compose, Kubernetes, systemd, nginx, Prometheus, a Grafana dashboard",
    "examples": "recipes, tasks, and the server and skill of `make demo`",
    "docs": "these pages",
}
"""Folders without a docstring."""


def replaced(page: str, root: Path) -> str:
    """`page` with the tree between its two marks made anew."""
    before, _, after = page.split(MARK)
    return f"{before}{MARK}\n```\n{chr(10).join(lines(root))}\n```\n{MARK}{after}"


def lines(root: Path) -> Iterator[str]:
    """One line for each folder and module of `pruning/` and `server/`, then the other folders."""
    for top in ("pruning", "server"):
        yield entry(f"{top}/", first_sentence(root / top / "__init__.py"), 0)
        yield from below(root / top, 1)
    for name, text in OTHERS.items():
        yield entry(f"{name}/", text, 0)


def below(folder: Path, depth: int) -> Iterator[str]:
    """What lies in `folder`: modules, then folders with what lies in them as far as DEPTH."""
    modules = [path for path in files(folder) if path.suffix == ".py" and path.name != "__init__.py"]
    for path in modules:
        yield entry(path.name, first_sentence(path), depth)
    for inner in sorted({path for path in folder.iterdir() if (path / "__init__.py").exists()}):
        yield entry(f"{inner.name}/", first_sentence(inner / "__init__.py"), depth)
        if depth + 1 < DEPTH:
            yield from below(inner, depth + 1)


def files(folder: Path) -> list[Path]:
    """The files that lie in `folder` itself."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def entry(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth + name:<30} {text}".rstrip()


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return re.split(r"\.(?:\s|$)", " ".join(paragraph.split()))[0]
