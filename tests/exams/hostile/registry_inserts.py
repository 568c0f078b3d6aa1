"""An owner of the registry's database, or of an artifact's folder, tries to get a version served without the signers.

`python -m tests.exams.hostile.registry_inserts` prints its rows; the exit code is 1 if one does not hold. The attacker
writes any row and any file, and has no private key.
"""

import contextlib
import io
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import msgspec
import numpy
from safetensors import safe_open
from safetensors.numpy import save_file

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import WEIGHTS, GateResult
from server.artifact.signing import keys
from server.commands.__main__ import main as secateur
from server.config import load
from server.errors import SecateurError
from server.models.follow import Follower
from server.models.loading import Loader
from server.models.rollout import Engine, Model
from server.text.tokenizer import Tokenizer
from tests.exams.row import Row, show
from tests.server.artifact.signing.artifacts import make

PASSED, FAILED = (GateResult("faq", True),), (GateResult("faq", False, {"nll_ratio": 1.9}),)
REFUSED, SERVED = "refused", "served"


class Site:
    """A registry, a signer, and a server's settings, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, folder / "registry.sqlite3"
        self.key, self.signers = folder / "alice.pem", folder / "signers"
        self.signers.write_text(keys.Signer("alice", keys.create(self.key, elliptic=False)).line)
        (folder / "skill.toml").write_text('name = "help"')

    def command(self, *words: object) -> tuple[int, str]:
        """Run `secateur registry`; returns its exit code and what it printed."""
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
            code = secateur(["registry", "--registry", str(self.registry), *map(str, words)])
        return code, said.getvalue()

    def move(self, action: str, what: str) -> int:
        """Promote or roll back as the signer does."""
        return self.command(action, what, "--signers", self.signers, "--key", self.key)[0]

    def artifact(self, number: int, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        """An artifact that the signer signed."""
        path = self.folder / f"model-{number}"
        make(path, float(number), gates=gates)
        with contextlib.redirect_stdout(io.StringIO()):
            assert secateur(["sign", str(path), "--key", str(self.key)]) == 0
        return path

    def add(self, number: int, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        """The same as a version of `tiny`."""
        path = self.artifact(number, gates)
        assert self.command("add", "tiny", path)[0] == 0
        return path

    def loader(self, model: object, *, signed: bool = True) -> Loader:
        """What a server with this model loads by."""
        lines = [f'{name} = "{value}"' for name, value in self.settings(model, signed=signed).items()]
        (self.folder / "server.toml").write_text("\n".join(lines))
        return Loader(load(self.folder / "server.toml"))

    def settings(self, model: object, *, signed: bool) -> dict[str, object]:
        ledger, skill = self.folder / "usage.sqlite3", self.folder / "skill.toml"
        settings = {"model": model, "skills": skill, "ledger": ledger, "registry": self.registry}
        return {**settings, "signers": self.signers} if signed else settings

    def follower(self) -> Follower[Model]:
        """The follower of a running server, whose models have no engine."""
        follower = self.loader("registry:tiny@production").open("registry:tiny@production").follower
        assert follower is not None
        follower._load = lambda path, name: Model(name, cast(Engine, None), Tokenizer.load(path), record.read(path))
        return follower

    def started(self, model: object = "registry:tiny@production", *, signed: bool = True) -> str:
        """What a server that starts now does with this model."""
        try:
            self.loader(model, signed=signed).open(str(model))
        except SecateurError as error:
            return f"{REFUSED}: {error.message}"
        return SERVED

    def sql(self, statement: str, *values: object) -> None:
        """What the owner of the database writes."""
        with closing(sqlite3.connect(self.registry)) as database, database:
            database.execute(statement, values)

    def insert_move(self, move: int, number: int, previous: int, kind: str = "promote") -> None:
        """The row of a move, with everything that needs no key."""
        columns = "model, number, move, kind, previous, reason, added"
        row = ("tiny", number, move, kind, previous, "gates passed: faq", "2026-12-01T00:00:00.000000+00:00")
        self.sql(f"INSERT INTO moves ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row)

    def remove_moves(self, above: int) -> None:
        """What an old copy of the database has no more."""
        self.sql("DROP TRIGGER moves_no_delete")
        self.sql("DELETE FROM moves WHERE move > ?", above)


def followed(site: Site, follower: Follower[Model]) -> str:
    """What the running server does with what the registry says now."""
    with log() as said:
        model = follower.next()
    return SERVED if model is not None else f"{REFUSED}: {said.getvalue().strip()}"


@contextlib.contextmanager
def log() -> Iterator[io.StringIO]:
    """What is logged by the models' room."""
    import logging

    text, logger = io.StringIO(), logging.getLogger("server.models")
    handler = logging.StreamHandler(text)
    logger.addHandler(handler)
    try:
        yield text
    finally:
        logger.removeHandler(handler)


def failed_version(site: Site) -> str:
    site.add(1)
    site.move("promote", "tiny@1")
    follower = site.follower()
    site.add(2, FAILED)
    site.insert_move(2, 2, 1)
    return followed(site, follower)


def failed_version_at_start(site: Site) -> str:
    site.add(1)
    site.move("promote", "tiny@1")
    site.add(2, FAILED)
    site.insert_move(2, 2, 1)
    return site.started()


def silent_rollback(site: Site) -> str:
    for number in (1, 2):
        site.add(number)
        site.move("promote", f"tiny@{number}")
    follower = site.follower()
    site.insert_move(3, 1, 2, "rollback")
    return followed(site, follower)


def replayed_promotion(site: Site) -> str:
    for number in (1, 2):
        site.add(number)
        site.move("promote", f"tiny@{number}")
    follower = site.follower()
    site.sql("CREATE TABLE copy AS SELECT * FROM moves WHERE move = 1")
    site.sql("UPDATE copy SET move = 3")
    site.sql("INSERT INTO moves SELECT * FROM copy")
    return followed(site, follower)


def restored_registry(site: Site) -> str:
    for number in (1, 2):
        site.add(number)
        site.move("promote", f"tiny@{number}")
    follower = site.follower()
    site.remove_moves(1)
    return followed(site, follower)


def restored_registry_at_start(site: Site) -> str:
    for number in (1, 2):
        site.add(number)
        site.move("promote", f"tiny@{number}")
    site.follower()
    site.remove_moves(1)
    return site.started()


def verified(site: Site) -> str:
    site.add(1)
    site.move("promote", "tiny@1")
    site.add(2, FAILED)
    site.insert_move(2, 2, 1)
    code, said = site.command("verify", "tiny@production", "--signers", site.signers)
    return f"{REFUSED}: {said}" if code else said


def handwritten_results(site: Site) -> str:
    path = site.add(1, None)
    measured = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 60}
    gates = [{"gate": "max_nll_ratio", "limit": 1.05, "measured": measured, "passed": True}]
    weights = record.read(path).files[WEIGHTS]
    (site.folder / "r.json").write_text(json.dumps({"task": "desk", "weights": weights, "gates": gates}))
    site.command("add", "tiny", path, "--results", site.folder / "r.json")
    return f"{REFUSED}: by promote" if site.move("promote", "tiny@1") else site.started()


def inserted_gate(site: Site) -> str:
    site.add(1, None)
    columns = "model, number, task, passed, figures, source, added"
    row = ("tiny", 1, "faq", 1, "{}", "lineage", "2026-12-01T00:00:00.000000+00:00")
    site.sql(f"INSERT INTO gates ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
    return f"{REFUSED}: by promote" if site.move("promote", "tiny@1") else site.started()


def failed_directory(site: Site) -> str:
    return site.started(site.artifact(1, FAILED))


def changed_weights(site: Site) -> str:
    path = site.artifact(1)
    with safe_open(path / WEIGHTS, "numpy") as file:
        metadata, names = file.metadata(), {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: found.get_shape() for name, found in names.items()}
    content = {name: numpy.full(shape, 16384, "uint16") for name, shape in shapes.items()}
    save_file(content, path / "new", metadata)
    header = (path / "new").read_bytes().replace(b'"U16"', b'"BF16"')
    length = int.from_bytes(header[:8], "little") + header.count(b'"BF16"')
    (path / "new").unlink()
    (path / WEIGHTS).write_bytes(length.to_bytes(8, "little") + header[8:])
    found = record.read(path)
    files = {**found.files, WEIGHTS: record.digest_of(path / WEIGHTS)}
    (path / record.FILE).write_bytes(record.encoded(msgspec.structs.replace(found, files=files)))
    return site.started(path, signed=False)


ATTACKS: dict[str, Callable[[Site], str]] = {
    "a move inserted for a version that failed its gate, server running": failed_version,
    "the same, server starting": failed_version_at_start,
    "a roll-back inserted, server running": silent_rollback,
    "a signed promotion copied behind the last move, server running": replayed_promotion,
    "the last move removed, server running": restored_registry,
    "the last move removed, server starting": restored_registry_at_start,
    "`registry verify` of an inserted move": verified,
    "results written by hand": handwritten_results,
    "a gate row that says it comes from the record": inserted_gate,
    "a signed directory whose own record failed its gate": failed_directory,
    "weights changed together with their digest in the record, unsigned": changed_weights,
}


def rows() -> Iterator[Row]:
    """Each attack on a site of its own: what the server did, and whether it refused."""
    for name, attack in ATTACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            figure = " ".join(attack(Site(Path(folder))).split())
        yield Row(name, figure, REFUSED, figure.startswith(REFUSED))


def main() -> int:
    """Print a line per row; returns 1 if one does not hold."""
    return show(rows())


if __name__ == "__main__":
    sys.exit(main())
