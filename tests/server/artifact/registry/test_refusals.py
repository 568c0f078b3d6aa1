"""What the registry refuses, on SQLite and on PostgreSQL: each a clear sentence, and nothing changed."""

import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg
import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.registry import connection, rules
from server.artifact.registry.store import Registry, Version
from server.artifact.signing.keys import Signer, Signers, read_private
from server.errors import RegistryError, SignatureError
from server.storage.digests import FileDigests
from tests.server.artifact.registry.shop import Shop


def exchange(path: Path) -> None:
    (path / record.FILE).write_bytes(record.encoded(msgspec.structs.replace(record.read(path), created="later")))


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda path: (path / "config.json").write_text("{}"), "config.json was changed"),
        (lambda path: (path / "x").write_text("x"), "x is not named in lineage.json"),
        (exchange, "lineage.json is not the record of tiny@1: it was exchanged"),
        (lambda path: (path / "model.sig").unlink(), "model.sig is missing: the artifact is not signed"),
    ],
)
def test_a_tampered_artifact_is_not_promoted(
    shop: Shop, tamper: Callable[[Path], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0)
    tamper(path)
    before = shop.rows()
    for words in (("promote", "tiny@1"), ("verify", "tiny@1")):
        assert shop(*words, "--signers", shop.signers) == 2
        assert sentence in capsys.readouterr().err
    assert shop.rows() == before


def test_of_two_concurrent_promotions_the_second_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.added(1.0)
    shop.added(2.0)
    both, original, errors = threading.Barrier(2, timeout=120), rules.verify, []

    def verify(version: Version, signers: Signers | None, digests: FileDigests | None = None) -> Signer | None:
        both.wait()  # both have looked at what is in production, neither has moved it
        return original(version, signers, digests)

    def promote(number: int) -> None:
        with Registry.open(shop.url) as registry:
            try:
                rules.promote(registry, registry.resolve(f"tiny@{number}"), read_private(shop.key), None)
            except RegistryError as error:
                errors.append(error.message)

    monkeypatch.setattr(rules, "verify", verify)
    threads = [threading.Thread(target=promote, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = shop.production()
    assert winner in (1, 2)
    [error] = errors
    assert f"tiny@production was moved to version {winner} by somebody else meanwhile; nothing was changed" in error
    with Registry.open(shop.url) as registry:
        assert len(registry.moves("tiny")) == 1


@pytest.mark.parametrize("table", ["versions", "gates", "approvals", "moves", "bindings"])
def test_governing_tables_are_append_only(shop: Shop, table: str) -> None:
    shop.added(1.0)
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "fine") == 0
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        registry.bind(["help"], registry.resolve("tiny@1"))
        for statement in (f"UPDATE {table} SET model = 'x'", f"DELETE FROM {table}"):
            with pytest.raises(RegistryError, match=f"{table} is append-only"):
                registry._database.execute(statement)


def test_production_follows_the_moves_and_not_the_alias(shop: Shop) -> None:
    for value in (1.0, 2.0):
        shop.added(value)
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        registry._database.execute("UPDATE aliases SET number = 2 WHERE alias = 'production'")
        assert registry.resolve("tiny@production").number == 1
        assert registry.resolve("tiny@candidate").number == 2


def test_a_locked_registry_is_a_clear_refusal(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0)
    before = shop.rows()
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.2)
    with closing(sqlite3.connect(shop.url) if "://" not in shop.url else psycopg.connect(shop.url)) as other:
        other.execute("BEGIN IMMEDIATE" if "://" not in shop.url else "LOCK TABLE moves")
        assert shop("promote", "tiny@1") == 2
        error = capsys.readouterr().err
        assert "another process holds it" in error
        assert "try again; nothing was changed" in error
        assert "secret" not in error
        other.rollback()
    assert shop.rows() == before
    assert shop("promote", "tiny@1") == 0


@pytest.fixture
def read_only(shop: Shop) -> Iterator[Shop]:
    """A registry with one version, on a disk that was mounted read-only since, or in a session that may only read."""
    if "://" in shop.url:
        shop.added(1.0)
        shop.url += "&options=-c%20default_transaction_read_only%3Don"
        yield shop
        return
    disk = shop.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a disk read-only")
    try:
        shop.url = str(disk / "registry.sqlite3")
        shop.added(1.0)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield shop
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_registry_can_be_read_and_refuses_the_rest(
    tmp_path: Path, read_only: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_only.rows()
    assert read_only("list") == 0
    assert "tiny@1" in capsys.readouterr().out
    assert read_only("promote", "tiny@1") == 2
    assert "it may only be read here" in capsys.readouterr().err
    assert read_only.rows() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "tiny"), "'tiny' is not a version: write NAME@NUMBER"),
        (("show", "other@1"), "there is no model 'other' here; there are tiny"),
        (("show", "tiny@²"), "'tiny@²' is not a version: write NAME@NUMBER"),
        (("show", "tiny@7"), "tiny has no version 7; it has 1"),
        (("show", "tiny@production"), "tiny has no production version"),
        (("rollback", "tiny"), "tiny has nothing in production"),
        (("add", "Tiny!", "{artifact}"), "'Tiny!' is not a valid model name"),
        (("add", "tiny", "{folder}"), "is not an artifact"),
        (("add", "tiny", "{artifact}", "--results", "{folder}/none"), "none cannot be read"),
        (("add", "tiny", "{artifact}", "--results", "{artifact}/config.json"), "is not a file of `secateur evaluate"),
    ],
)
def test_a_mistake_is_one_sentence(
    shop: Shop, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0)
    before = shop.rows()
    capsys.readouterr()
    assert shop(*(word.format(artifact=path, folder=shop.folder) for word in words)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert shop.rows() == before


def test_a_database_of_another_program_or_of_a_newer_one_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite3")) as other:
        other.execute("CREATE TABLE models (x)")
    with pytest.raises(RegistryError, match="another program's database"):
        Registry.open(str(tmp_path / "other.sqlite3"))
    with Registry.open(str(tmp_path / "newer.sqlite3"), create=True) as registry:
        registry._database.execute("UPDATE registry SET version = 3")
    with pytest.raises(RegistryError, match="is of version 3; this program knows 2"):
        Registry.open(str(tmp_path / "newer.sqlite3"))
    (tmp_path / "text").write_text("this is no database" * 99)
    with pytest.raises(RegistryError, match="not a database"):
        Registry.open(str(tmp_path / "text"))


def test_a_record_that_was_changed_in_the_database_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """By somebody who owns the database and has dropped what makes it append-only."""
    path = shop.added(1.0)
    with Registry.open(shop.url) as registry:
        run = registry._database.execute
        run(
            "DROP TRIGGER versions_no_update" if "://" not in shop.url else "DROP FUNCTION versions_append_only CASCADE"
        )
        forged = record.encoded(msgspec.structs.replace(record.read(path), created="before")).decode()
        for text, sentence in ((forged, "it is not what its address says"), ("{}", "Object missing required field")):
            run("UPDATE versions SET lineage = ?", (text,))
            assert shop("promote", "tiny@1") == 2
            error = capsys.readouterr().err
            assert "record of tiny@1 was changed" in error
            assert sentence in error
    assert shop.production() is None


def test_only_adding_makes_a_registry(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, url)
    for words in (("list",), ("promote", "tiny@1")):
        assert shop(*words) == 2
        error = capsys.readouterr().err
        assert "there is no registry at" in error
        assert "`secateur registry add` makes one" in error
    tampered = shop.artifact(2.0)
    (tampered / "x").write_text("x")
    assert shop("add", "tiny", tampered) == 2
    assert "x is not named in lineage.json" in capsys.readouterr().err
    assert shop("list") == 2  # what is refused makes none either
    assert not (tmp_path / "registry.sqlite3").exists()
    shop.added(1.0)
    assert shop("list") == 0


def test_an_unreachable_server_is_named_without_the_password() -> None:
    with pytest.raises(RegistryError) as refused:
        Registry.open("postgresql://me:secret@127.0.0.1:1/models")
    assert "postgresql://127.0.0.1:1/models" in refused.value.message
    assert "secret" not in refused.value.message
    assert not isinstance(refused.value, SignatureError)
