"""Registries of both kinds, on a real PostgreSQL where the machine has one."""

from pathlib import Path

import pytest

from tests.server.artifact.registry.shop import Shop
from tests.support.postgres_server import new_database, postgres

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new registry."""
    if request.param == "sqlite":
        return str(tmp_path / "registry.sqlite3")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def shop(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> Shop:
    return Shop(tmp_path, url)
