"""Ledgers of both kinds, on a real PostgreSQL where the machine has one."""

from pathlib import Path

import pytest

from tests.support.postgres_server import new_database, postgres

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger may be made."""
    if request.param == "sqlite":
        return str(tmp_path / "usage.sqlite3")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> str:
    """A database for several replicas."""
    return new_database(request.getfixturevalue("postgres"))
