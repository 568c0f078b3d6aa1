"""The adapter's promises, on SQLite and on a real PostgreSQL where the machine has one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import Busy
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import misnamed, without_password
from tests.support.postgres_server import new_database, postgres

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "folder" / "rows.sqlite3")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    made = connect(where, Options(busy_seconds=0.2))
    made.execute("CREATE TABLE rows (name TEXT)")
    yield made
    made.close()


def insert_and_fail(database: Database) -> None:
    with database.transaction():
        database.execute("INSERT INTO rows VALUES (?)", ("a",))
        raise RuntimeError("stopped")


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        insert_and_fail(database)
    assert database.execute("SELECT name FROM rows") == []
    with database.transaction():
        assert database.execute_many("INSERT INTO rows VALUES (?)", [("a",), ("b",)]) == 2
    assert database.execute("SELECT name FROM rows ORDER BY name") == [("a",), ("b",)]
    assert database.tables() == {"rows"}


def test_an_append_only_table_refuses_changes(database: Database) -> None:
    database.make_append_only("rows")
    database.execute("INSERT INTO rows VALUES ('a')")
    for statement in ("UPDATE rows SET name = 'b'", "DELETE FROM rows"):
        with pytest.raises(StorageError, match="rows is append-only"):
            database.execute(statement)
    assert database.execute("SELECT name FROM rows") == [("a",)]


def test_failures_are_the_callers_own_errors_on_one_line(database: Database, where: str) -> None:
    other = connect(where, Options(failure=lambda message: KeyError(f"mine: {message}")))
    with pytest.raises(KeyError, match=r"mine: .*missing"):
        other.execute("SELECT * FROM missing")
    other.close()
    with pytest.raises(StorageError) as error:
        database.execute("SELECT * FROM missing")
    assert "\n" not in str(error.value)


def test_an_exclusive_file_has_one_holder_and_read_only_ones_beside_it(tmp_path: Path) -> None:
    where = str(tmp_path / "rows.sqlite3")
    held = connect(where, Options(exclusive=True))
    held.execute("CREATE TABLE rows (name TEXT)")
    with pytest.raises(Busy, match="holds"):
        connect(where, Options(exclusive=True))
    beside = connect(where, Options(read_only=True))
    with pytest.raises(StorageError, match="readonly"):
        beside.execute("INSERT INTO rows VALUES ('a')")
    beside.close()
    held.close()
    connect(where, Options(exclusive=True)).close()


def test_a_file_that_cannot_be_opened_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    path.mkdir()
    with pytest.raises(StorageError, match="unable to open"):
        connect(str(path), Options(exclusive=True))
    path.rmdir()
    connect(str(path), Options(exclusive=True)).close()


def test_messages_show_no_password() -> None:
    assert without_password("postgresql://me:secret@host/db?sslmode=require") == "postgresql://host/db"
    assert without_password("postgresql://me:a/b@c@host/db") == "postgresql://host/db"
    assert without_password("mysql://me:secret@host/db") == "mysql:..."
    assert without_password("build/a@b.sqlite3") == "build/a@b.sqlite3"


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    made = connect(str(tmp_path / "rows.sqlite3"), Options(exclusive=True, pragmas=("journal_mode = WAL",)))
    with made.transaction():
        made.execute("CREATE TABLE rows (name TEXT)")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    made.close()
    assert modes == dict.fromkeys(("rows.sqlite3", "rows.sqlite3-wal", "rows.sqlite3-shm", "rows.sqlite3.lock"), 0o600)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_file_that_was_moved_or_replaced_is_not_written(tmp_path: Path, suffix: str) -> None:
    made = connect(str(tmp_path / "rows.sqlite3"), Options(pragmas=("journal_mode = WAL",)))
    with made.transaction():
        made.execute("CREATE TABLE rows (name TEXT)")
    made.check()
    file, away = tmp_path / f"rows.sqlite3{suffix}", tmp_path / "away"
    file.rename(away)
    with pytest.raises(StorageError, match=rf"rows.sqlite3{suffix} was deleted or moved"), made.transaction():
        made.execute("INSERT INTO rows VALUES ('lost')")
    shutil.copyfile(away, file)
    with pytest.raises(StorageError, match=rf"rows.sqlite3{suffix} was replaced by another file"), made.transaction():
        made.execute("INSERT INTO rows VALUES ('lost')")
    away.replace(file)
    with made.transaction():
        made.execute("INSERT INTO rows VALUES ('kept')")
    assert made.execute("SELECT name FROM rows") == [("kept",)]
    made.close()


def test_another_databases_log_survives_the_end_of_a_replaced_one(tmp_path: Path) -> None:
    wal = ("journal_mode = WAL",)
    old = connect(str(tmp_path / "rows.sqlite3"), Options(pragmas=wal))
    with old.transaction():
        old.execute("CREATE TABLE old (name TEXT)")
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"rows.sqlite3{suffix}").unlink()
    new = connect(str(tmp_path / "rows.sqlite3"), Options(pragmas=wal))
    with new.transaction():
        new.execute("CREATE TABLE new (name TEXT)")
    old.close()
    assert (tmp_path / "rows.sqlite3-wal").exists()
    assert new.tables() == {"new"}
    new.close()


@pytest.mark.parametrize("name", ["usage.sqlite3", "/var/lib/a@b/usage", "./a:b.sqlite3", "postgres://host/usage"])
def test_files_and_postgresql_are_addresses(name: str) -> None:
    assert misnamed(name) is None


@pytest.mark.parametrize("url", ["mysql://me:hunter2@host/db", "dbname=usage password=hunter2", "./x://hunter2"])
def test_another_address_makes_no_file(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="is neither a file nor PostgreSQL: write ") as caught:
        connect(url, Options())
    assert "hunter2" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_malformed_url_is_refused_without_its_password() -> None:
    with pytest.raises(StorageError, match="its URL is malformed") as caught:
        connect("postgresql://me:hunt@er2:secret@host/db", Options())
    assert "er2" not in str(caught.value)
    assert "secret" not in str(caught.value)
