"""`secateur prune` with the base cache that all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.commands.__main__ import main

Prune = Callable[[Path, Path], int]


@pytest.fixture(scope="session")
def prune(base_cache: Path) -> Prune:
    """Carries out a recipe; returns the exit code."""

    def run(recipe: Path, output: Path) -> int:
        return main(["prune", str(recipe), "--output", str(output), "--base-cache", str(base_cache)])

    return run
