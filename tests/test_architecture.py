"""The house rules that a machine can check: who imports whom, no cycles, short files and functions, a true README."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for top in ("pruning", "server") for path in (ROOT / top).rglob("*.py"))
WITHOUT_TORCH = (
    "server.api",
    "server.skills",
    "server.metering",
    "server.config",
    "server.registry",
    "server.signing",
    "server.reply",
    "server.replays",
    "server.tokenizer",
    "server.engine.sequence",
    "server.engine.scheduler",
    "server.engine.batch",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in SOURCES}


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, late imports included."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_server_imports_nothing_of_pruning() -> None:
    assert not [m for m in MODULES if within(m, "server") for name in imports(m) if within(name, "pruning")]


def test_pruning_sees_only_the_checkpoint_format_and_evaluation_the_engine() -> None:
    for module in (m for m in MODULES if within(m, "pruning")):
        allowed = ["server.checkpoint", "server.errors"]
        if within(module, "pruning.evaluation"):
            allowed.append("server.engine")
        assert not [n for n in imports(module) if within(n, "server") and n != "server" and not within(n, *allowed)]


def test_torch_and_http_stay_apart() -> None:
    for module in MODULES:
        if within(module, *WITHOUT_TORCH):
            assert not [n for n in imports(module) if within(n, "torch", "transformers")], module
        if within(module, "server.engine", "server.checkpoint", "pruning"):
            assert not [n for n in imports(module) if within(n, "starlette", "prometheus_client", "uvicorn")], module


@pytest.mark.parametrize("top", ["server", "pruning"])
def test_one_file_imports_transformers(top: str) -> None:
    files = {m for m in MODULES if within(m, top) for name in imports(m) if within(name, "transformers")}
    assert len(files) == 1, files


def test_there_are_no_import_cycles() -> None:
    graph = {m: {name for name in imports(m) if name in MODULES and name != m} for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_files_and_functions_are_short() -> None:
    long = [f"{path.relative_to(ROOT)}: {n}" for path in SOURCES if (n := len(path.read_text().splitlines())) > 300]
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.lineno + 1
                long += [f"{module}.{node.name}: {lines}"] if lines > 40 else []
    assert not long


def test_nothing_runs_code_from_data() -> None:
    forbidden = re.compile(r"\bpickle\b|torch\.load\(|\beval\(\w*[\"'a-z]|\bexec\(|yaml\.load|trust_remote_code=True")
    hits = [f"{path.name}: {hit.group()}" for path in SOURCES for hit in forbidden.finditer(path.read_text())]
    assert not hits


def test_the_tree_in_the_readme_is_the_disk() -> None:
    text = (ROOT / "README.md").read_text().split("<!-- tree -->")[1]
    written, folders = set(), [""]
    for line in text.splitlines():
        if match := re.match(r"((?:  )*)([\w.\-/]+)(?:\s{2,}|$)", line):
            depth, name = len(match[1]) // 2, match[2]
            folders[depth + 1 :] = [folders[depth] + name]
            written.add(folders[depth + 1])
    expected = {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"}
    listed = {name for name in written if name.endswith(".py") and name.split("/")[0] in ("pruning", "server")}
    assert listed == expected
    assert not [name for name in written if not (ROOT / name).exists()]
