"""The registry on SQLite and on PostgreSQL: what it records, what it refuses, and that a refusal changes nothing."""

import json
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from server.__main__ import main
from server.checkpoint import lineage as record
from server.checkpoint.lineage import GateResult
from server.errors import RegistryError, SignatureError
from server.registry import database, rules
from server.registry.store import Registry, Version
from server.signing import keys
from server.signing.keys import Signers
from tests.server.signing.artifacts import make

PASSED = (GateResult("faq", True, {"nll_ratio": 1.02}),)
FAILED = (GateResult("faq", False, {"nll_ratio": 1.9}), GateResult("chat", True))


class Shop:
    """A registry, artifacts for it, a signer and the command."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.key, self.signers = folder / "alice.pem", folder / "signers"
        self.signers.write_text(keys.Signer("alice", keys.create(self.key, elliptic=False)).line)

    def __call__(self, *words: object) -> int:
        return main(["registry", "--registry", self.url, *map(str, words)])

    def artifact(self, value: float, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        path = self.folder / f"model-{value}"
        make(path, value, gates=gates)
        assert main(["sign", str(path), "--key", str(self.key)]) == 0
        return path

    def added(self, value: float, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        path = self.artifact(value, gates)
        assert self("add", "tiny", path) == 0
        return path

    def rows(self) -> list[list[tuple[Any, ...]]]:
        """Everything in the registry."""
        tables = ("models", "versions", "paths", "gates", "approvals", "aliases", "moves", "bindings")
        with Registry.open(self.url) as registry:
            return [sorted(registry._database.execute(f"SELECT * FROM {table}"), key=str) for table in tables]

    def production(self) -> int | None:
        with Registry.open(self.url) as registry:
            return registry.aliases("tiny").get("production")


@pytest.fixture
def shop(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> Shop:
    return Shop(tmp_path, url)


def test_from_candidate_to_production_and_back(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (1.0, 2.0, 3.0):
        shop.added(value)
    for number in (1, 2, 3):
        assert shop("promote", f"tiny@{number}", "--signers", shop.signers) == 0
        assert shop.production() == number
    assert "tiny@3 is in production (gates passed: faq)" in capsys.readouterr().out
    for number in (2, 1):
        assert shop("rollback", "tiny", "--signers", shop.signers) == 0
        assert shop.production() == number
    assert shop("rollback", "tiny") == 2
    assert "tiny@1 is the first in production: there is nothing to go back to" in capsys.readouterr().err
    assert shop("promote", "tiny@1") == 2
    assert "tiny@1 is in production already" in capsys.readouterr().err
    assert shop("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tiny@1", "tiny@2", "tiny@3"]
    assert lines[0].endswith("production")
    assert lines[2].endswith("candidate")


def test_a_version_shows_all_that_is_known_of_it(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    path = shop.added(1.0)
    assert shop("approve", "tiny@candidate", "--key", shop.key, "--reason", "looks fine") == 0
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        registry.bind(["help"], registry.resolve("tiny@production"))
    capsys.readouterr()
    assert shop("show", "tiny@production") == 0
    shown = capsys.readouterr().out
    for part in (
        "tiny@1 (candidate, production)",
        record.address(record.read(path)),
        str(path),
        "wanda (sparsity = 2:4)",
        "gate      faq: passed (nll_ratio 1.02; from lineage)",
        "looks fine",
        "nothing -> version 1: gates passed: faq",
        "skill     help since",
    ):
        assert part in shown
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 0
    assert "tiny@1 is whole; signed by alice; approval by alice" in capsys.readouterr().out


def test_the_same_artifact_is_the_same_version_wherever_it_lies(shop: Shop, tmp_path: Path) -> None:
    path = shop.added(1.0)
    path.rename(tmp_path / "moved")
    assert shop("verify", "tiny@1") == 2
    assert shop("add", "tiny", tmp_path / "moved") == 0
    assert shop("verify", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        assert registry.numbers("tiny") == [1]
        assert len(registry.resolve("tiny@1").gates) == 1


def test_the_difference_of_two_versions(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.added(1.0)
    shop.added(2.0, FAILED)
    capsys.readouterr()
    assert shop("diff", "tiny@1", "tiny@2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny@1 | tiny@2"
    assert "lineage.evaluation.perplexity.pruned: 17.0 | 18.0" in lines
    assert "gates.faq: True | False" in lines
    assert not [line for line in lines if "dense" in line or ".sparsity." in line]


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        (None, "tiny@1 has no gate result: it was not evaluated on a task"),
        ((), "tiny@1 has no gate result"),
        (FAILED, "tiny@1 failed its gate faq"),
    ],
)
def test_what_passed_no_gate_is_promoted_by_a_signed_override_alone(
    shop: Shop, gates: tuple[GateResult, ...] | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0, gates)
    before = shop.rows()
    assert shop("promote", "tiny@1") == 2
    assert sentence in capsys.readouterr().err
    assert shop.rows() == before
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "fine by me") == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2  # an approval is no override
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", " ", "--override") == 2
    assert "an approval needs a reason" in capsys.readouterr().err
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "demo on Friday", "--override") == 0
    assert shop("promote", "tiny@1") == 2
    assert "its override counts only with --signers" in capsys.readouterr().err
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 0
    assert "overridden by alice: demo on Friday" in capsys.readouterr().out


def test_an_override_by_an_unknown_signer_or_for_another_version_does_not_count(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0, None)
    shop.added(2.0, None)
    keys.create(tmp_path / "eve.pem", elliptic=False)
    assert shop("approve", "tiny@1", "--key", tmp_path / "eve.pem", "--reason", "trust me", "--override") == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2
    assert "is signed with the key" in capsys.readouterr().err
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "yes", "--override") == 0
    with Registry.open(shop.url) as registry:
        registry.approve(registry.resolve("tiny@2"), registry.resolve("tiny@1").approvals[-1])
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 2
    assert "is forged: alice did not sign it" in capsys.readouterr().err
    assert shop.production() is None


def results(path: Path, weights: str, *, passed: bool = True) -> Path:
    """A file as `secateur evaluate` writes it, with more in it than is read."""
    interval = {"value": 1.01, "low": 1.0, "high": 1.03, "n": 60}
    gate = {"gate": "max_nll_ratio", "limit": 1.05, "measured": interval, "passed": passed}
    path.write_text(json.dumps({"task": "desk", "kind": "qa", "weights": weights, "gates": [gate], "rows": []}))
    return path


def test_results_of_an_evaluation_count_if_they_are_of_these_weights(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0, None)
    weights = record.read(path).files["model.safetensors"]
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", "0" * 64)) == 2
    assert "r.json is of another artifact" in capsys.readouterr().err
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", weights, passed=False)) == 0
    assert shop("promote", "tiny@1") == 2
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", weights)) == 0
    assert shop("promote", "tiny@1") == 0
    assert "gates passed: desk" in capsys.readouterr().out


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
def test_what_was_tampered_with_is_not_promoted(
    shop: Shop, tamper: Callable[[Path], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0)
    tamper(path)
    before = shop.rows()
    for words in (("promote", "tiny@1"), ("verify", "tiny@1")):
        assert shop(*words, "--signers", shop.signers) == 2
        assert sentence in capsys.readouterr().err
    assert shop.rows() == before


def test_two_promotions_at_once_one_wins_and_the_other_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.added(1.0)
    shop.added(2.0)
    both, original, errors = threading.Barrier(2, timeout=20), rules.verify, []

    def verify(version: Version, signers: Signers | None) -> str:
        both.wait()  # both have looked at what is in production, neither has moved it
        return original(version, signers)

    def promote(number: int) -> None:
        with Registry.open(shop.url) as registry:
            try:
                rules.promote(registry, registry.resolve(f"tiny@{number}"), None)
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
def test_what_governs_is_append_only(shop: Shop, table: str) -> None:
    shop.added(1.0)
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "fine") == 0
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        registry.bind(["help"], registry.resolve("tiny@1"))
        for statement in (f"UPDATE {table} SET model = 'x'", f"DELETE FROM {table}"):
            with pytest.raises(RegistryError, match=f"{table} is append-only"):
                registry._database.execute(statement)


def test_a_locked_registry_is_a_clear_refusal(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0)
    before = shop.rows()
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
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
        (("show", "tiny"), "'tiny' is no version: write NAME@NUMBER"),
        (("show", "other@1"), "there is no model 'other' here; there are tiny"),
        (("show", "tiny@7"), "tiny has no version 7; it has 1"),
        (("show", "tiny@production"), "tiny has no production version"),
        (("rollback", "tiny"), "tiny has nothing in production"),
        (("add", "Tiny!", "{artifact}"), "'Tiny!' is no name for a model"),
        (("add", "tiny", "{folder}"), "is no artifact"),
        (("add", "tiny", "{artifact}", "--results", "{folder}/none"), "none cannot be read"),
        (("add", "tiny", "{artifact}", "--results", "{artifact}/config.json"), "is not what `secateur evaluate"),
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
        registry._database.execute("UPDATE registry SET version = 2")
    with pytest.raises(RegistryError, match="is of version 2; this program knows 1"):
        Registry.open(str(tmp_path / "newer.sqlite3"))
    (tmp_path / "text").write_text("this is no database" * 99)
    with pytest.raises(RegistryError, match="not a database"):
        Registry.open(str(tmp_path / "text"))


def test_only_adding_makes_a_registry(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, url)
    for words in (("list",), ("promote", "tiny@1")):
        assert shop(*words) == 2
        error = capsys.readouterr().err
        assert "there is no registry at" in error
        assert "`secateur registry add` makes one" in error
    assert not (tmp_path / "registry.sqlite3").exists()
    shop.added(1.0)
    assert shop("list") == 0


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(RegistryError) as refused:
        Registry.open("postgresql://me:secret@127.0.0.1:1/models")
    assert "postgresql://127.0.0.1:1/models" in refused.value.message
    assert "secret" not in refused.value.message
    assert not isinstance(refused.value, SignatureError)
