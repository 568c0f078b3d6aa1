"""The architecture, checked: the rooms and their imports, no cycles, no state at import, short files and functions."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for top in ("pruning", "server") for path in (ROOT / top).rglob("*.py"))
SHARED = {"server": {"config", "errors", "intervals", "progress"}, "pruning": {"errors"}}
"""Files of a package beside its rooms, which every room may import."""
EVERYTHING = None
ROOMS: dict[str, set[str] | None] = {
    "server.commands": EVERYTHING,
    "server.web": {"artifact", "chat", "engine", "knowledge", "metering", "models", "skills", "storage"},
    "server.chat": {"engine", "knowledge", "metering", "models", "skills", "storage", "text"},
    "server.models": {"artifact", "engine", "knowledge", "metering", "skills", "storage", "text"},
    "server.skills": {"engine", "storage", "text"},  # engine: its sampling options are keys of a skill's file
    "server.engine": {"artifact"},
    "server.knowledge": {"artifact", "engine", "storage", "text"},  # engine: its encoders
    "server.metering": {"storage"},
    "server.artifact": {"storage", "text"},
    "server.text": set(),
    "server.storage": set(),
    "pruning.commands": EVERYTHING,
    "pruning.benchmark": {"evaluation", "model", "recipe", "run", "stages"},
    "pruning.run": {"data", "evaluation", "model", "recipe", "stages"},
    "pruning.evaluation": {"data", "model", "passes", "recipe", "stages", "techniques"},
    "pruning.stages": {"data", "model", "passes", "recipe", "techniques"},
    "pruning.techniques": {"passes"},
    "pruning.passes": {"model"},
    "pruning.recipe": {"techniques"},
    "pruning.data": {"model", "recipe"},
    "pruning.model": set(),
}
"""Room -> rooms of the same package that it may import; a test reads each room's docstring against it."""
FROM_SERVER = {"artifact", "errors", "intervals", "progress", "storage", "text"}
"""What any room of `pruning` may import of `server`; evaluation also what `SCORED` names."""
SCORED = {("evaluation", "engine"), ("evaluation", "knowledge")}
"""What is evaluated is the server's own code, so that figures are those of what is served."""
CONFIGURED = {"commands", "models", "skills", "web"}
"""Rooms that may know the server's settings."""
MOST_ENTRIES = 12
WITHOUT_TORCH = (
    "server.web",
    "server.chat",
    "server.skills",
    "server.metering",
    "server.config",
    "server.artifact.registry",
    "server.artifact.signing",
    "server.storage",
    "server.text",
    "server.engine.sequence",
    "server.engine.scheduling.scheduler",
    "server.engine.batch",
    "pruning.recipe",
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


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def own(module: str) -> Iterator[str]:
    """The modules of ours that `module` imports, each as the file that it is."""
    return (name for name in imports(module) if name in MODULES)


def test_server_imports_nothing_of_pruning() -> None:
    assert not [m for m in MODULES if within(m, "server") for name in own(m) if within(name, "pruning")]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_its_line_allows(name: str) -> None:
    package, _, short = name.partition(".")
    allowed = ROOMS[name]
    if allowed is None:
        return
    shared = SHARED[package] - ({"config"} if short not in CONFIGURED else set())
    for module in (m for m in MODULES if within(m, name)):
        for target in own(module):
            other, _, wing = room(target).partition(".")
            if other != package:
                assert wing in FROM_SERVER or (short, wing) in SCORED, f"{module} imports {target}"
            elif room(target) != name and target != package:
                assert wing in allowed | shared, f"{module} imports {target}"


@pytest.mark.parametrize("name", ROOMS)
def test_the_docstring_of_a_room_says_what_it_may_import(name: str) -> None:
    allowed = ROOMS[name]
    promise, _, permission = (ast.get_docstring(MODULES[name]) or "").partition("\n\n")
    assert promise.endswith(".")
    said = "everything" if allowed is None else ", ".join(f"`{room}`" for room in sorted(allowed)) or "no other room"
    assert permission == f"May import {said}."


def test_every_folder_is_a_room_and_none_is_crowded() -> None:
    for package in SHARED:
        folders = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
        assert {f"{package}.{folder}" for folder in folders} == {name for name in ROOMS if within(name, package)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries: dict[str, set[str]] = defaultdict(set)
    for line in tracked.splitlines():
        *parents, _ = parts = line.split("/")
        for depth in range(len(parents) + 1):
            entries["/".join(parts[:depth])].add(parts[depth])
    shared = {(package, f"{name}.py") for package, names in SHARED.items() for name in names}
    shared |= {(f"tests/{package}", f"test_{file}") for package, file in shared}
    entries = {folder: {e for e in names if (folder, e) not in shared} for folder, names in entries.items()}
    seen = {folder: [e for e in names if e != "__init__.py" and e[0] != "."] for folder, names in entries.items()}
    assert not {folder: len(names) for folder, names in seen.items() if len(names) > MOST_ENTRIES}


def test_every_library_is_declared() -> None:
    """Each third-party import belongs to a distribution of pyproject.toml, in `dependencies` or in an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {distribution(line) for line in lines}
    owners = packages_distributions()
    missing = {}
    for module in MODULES:
        for top in {name.partition(".")[0] for name in imports(module)} - sys.stdlib_module_names - SHARED.keys():
            if not declared & {distribution(owner) for owner in owners.get(top, [top])}:
                missing[top] = module
    assert not missing


def distribution(requirement: str) -> str:
    """The normalised name of a requirement's distribution."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def test_torch_and_http_stay_apart() -> None:
    for module in MODULES:
        if within(module, *WITHOUT_TORCH):
            assert not [n for n in imports(module) if within(n, "torch", "transformers")], module
        if within(module, "server.engine", "server.artifact", "pruning"):
            assert not [n for n in imports(module) if within(n, "starlette", "prometheus_client", "uvicorn")], module


def test_four_files_import_transformers() -> None:
    """Generating models, encoders, the bases that are pruned, and the attention of their training."""
    files = {m for m in MODULES for name in imports(m) if within(name, "transformers")}
    runners = {f"server.engine.runners.{name}" for name in ("transformers_runner", "encoder")}
    assert files == {*runners, "pruning.model.base", "pruning.stages.attention"}


def acyclic(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_there_are_no_import_cycles() -> None:
    acyclic({module: set(own(module)) - {module} for module in MODULES})


def test_no_folders_import_each_other() -> None:
    """At every depth: the folders beside each other have an order."""
    for folder in {".".join(module.split(".")[:-1]) for module in MODULES if "." in module}:
        graph: dict[str, set[str]] = defaultdict(set)
        depth = folder.count(".") + 1
        for module in (m for m in MODULES if within(m, folder) and m.count(".") > depth):
            wing = module.split(".")[depth]
            targets = {
                name.split(".")[depth] for name in own(module) if within(name, folder) and name.count(".") > depth
            }
            graph[wing] |= targets - {wing}
        acyclic(graph)


def test_files_are_short() -> None:
    assert not [f"{path.relative_to(ROOT)}: {n}" for path in SOURCES if (n := len(path.read_text().splitlines())) > 300]


def test_functions_are_short_in_tests_too() -> None:
    tests = {module_name(path): ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    long = {}
    for module, tree in (MODULES | tests).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                long[f"{module}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert not {name: lines for name, lines in long.items() if lines > 40}


def test_modules_keep_no_state_and_do_no_work_at_import() -> None:
    """Modules hold constants only: no container by a variable's name, no call or loop for its effect, no `global`."""
    work = ast.For | ast.While | ast.With
    found = []
    for module, tree in MODULES.items():
        found += [f"{module}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
        for node in tree.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=value)
                ) if mutable(value) and not name.isupper() and name != "__all__":
                    found.append(f"{module}.{name}")
                case ast.Expr(value=ast.Call()):
                    found.append(f"{module}:{node.lineno}")
            found += [f"{module}:{node.lineno}"] if isinstance(node, work) else []
    assert not found


def mutable(value: ast.expr | None) -> bool:
    """Whether an expression makes a container that could be changed."""
    makers = {"dict", "list", "set", "defaultdict", "deque", "OrderedDict"}
    made = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in makers
    return made or isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def test_nothing_runs_code_from_data() -> None:
    forbidden = re.compile(r"\bpickle\b|torch\.load\(|\beval\(\w*[\"'a-z]|\bexec\(|yaml\.load|trust_remote_code=True")
    hits = [f"{path.name}: {hit.group()}" for path in SOURCES for hit in forbidden.finditer(path.read_text())]
    assert not hits
