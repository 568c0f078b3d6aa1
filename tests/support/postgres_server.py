"""A real PostgreSQL server for tests, if the machine has one installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest


def binary(name: str) -> str | None:
    """The path of a PostgreSQL program: Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The socket folder of a PostgreSQL server that runs for the session."""
    with running() as folder:
        if folder is None:
            pytest.skip("PostgreSQL is not installed: tests/install does it")
        yield folder


@contextmanager
def running() -> Iterator[str | None]:
    """Run a server without passwords; yields its socket folder, or None if PostgreSQL is not installed."""
    initdb, pg_ctl = binary("initdb"), binary("pg_ctl")
    if not initdb or not pg_ctl:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="secateur-postgres-")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = f"{folder}/data"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)

    run(initdb, "--no-sync", "-A", "trust", "-U", "secateur", "-D", data)
    options = f"-c listen_addresses='' -c fsync=off -k {folder}"
    run(pg_ctl, "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
    try:
        yield folder
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def new_database(folder: str) -> str:
    """The URL of a new database; its password, which the server ignores, is for tests of error messages."""
    name = f"r{os.urandom(6).hex()}"
    with psycopg.connect(host=folder, user="secateur", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload, unused-ignore]
    return f"postgresql://secateur:secret@/{name}?host={folder}"
