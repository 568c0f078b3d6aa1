"""Reads and writes the registry's tables; the decisions are in `rules.py`."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult, Lineage
from server.artifact.registry.connection import MAKE, open_database
from server.artifact.registry.schema import TABLES, prepare
from server.errors import RegistryError
from server.storage.database import Database

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DEFAULT = "build/registry.sqlite3"
Alias = Literal["candidate", "production"]
Kind = Literal["approval", "override"]


class Gate(Struct, frozen=True):
    """A gate result; `source` is `lineage`, or the SHA-256 of a file of results."""

    result: GateResult
    source: str
    added: str = ""
    statement: str = ""
    """An `EvaluationStatement` as JSON, empty if the result is not signed."""
    signature: str = ""
    """Base64."""


class Approval(Struct, frozen=True):
    """A signed approval or override of one version."""

    kind: Kind
    signer: str
    reason: str
    statement: str
    signature: str
    """Base64."""
    added: str


class Version(Struct, frozen=True):
    """A version of a model or of a knowledge: one artifact."""

    model: str
    number: int
    address: str
    """The content address of its lineage."""
    path: Path
    added: str
    lineage: Lineage
    gates: tuple[Gate, ...] = ()
    approvals: tuple[Approval, ...] = ()

    @property
    def name(self) -> str:
        """NAME@NUMBER."""
        return f"{self.model}@{self.number}"


class Move(Struct, frozen=True):
    """A change of the production alias."""

    move: int
    kind: Literal["promote", "rollback"]
    number: int
    previous: int | None
    reason: str
    added: str
    statement: str = ""
    """A `MoveStatement` as JSON, empty if the move is not signed."""
    signature: str = ""
    """Base64."""


class Registry:
    """An open registry, a context manager; every method raises RegistryError if the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """Open the registry at `url`; a missing one is created with `create`, else RegistryError."""
        database = open_database(url, create=create)
        try:
            found, wanted = database.tables(), {table.split()[2] for table in TABLES}
            if "registry" not in found and found & wanted:
                raise RegistryError(f"{database.where} is another program's database: name a new file or schema")
            if "registry" not in found and not create:
                raise RegistryError(f"there is no registry at {database.where}: {MAKE}")
            prepare(database, exists="registry" in found)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def models(self) -> list[str]:
        """The names of all models."""
        return [name for (name,) in self._database.execute("SELECT name FROM models ORDER BY name")]

    def numbers(self, model: str) -> list[int]:
        """The version numbers of a model."""
        rows = self._database.execute("SELECT number FROM versions WHERE model = ? ORDER BY number", (model,))
        return [number for (number,) in rows]

    def aliases(self, model: str) -> dict[str, int]:
        """Version numbers by alias; production by its last move, since moves are append-only."""
        found = dict(self._database.execute("SELECT alias, number FROM aliases WHERE model = ?", (model,)))
        last = self.last_move(model)
        return found | ({"production": last.number} if last else {})

    def resolve(self, reference: str) -> Version:
        """The version with the reference NAME@NUMBER or NAME@ALIAS; raises RegistryError if there is none."""
        model, _, which = reference.partition("@")
        counted = which.isascii() and which.isdigit()
        if not counted and which not in ("candidate", "production"):
            raise RegistryError(f"{reference!r} is not a version: write NAME@NUMBER, NAME@candidate or NAME@production")
        numbers, aliases = self.numbers(model), self.aliases(model)
        if not numbers:
            raise RegistryError(f"there is no model {model!r} here; there are {', '.join(self.models()) or 'none'}")
        number = int(which) if counted else aliases.get(which)
        if number is None:
            raise RegistryError(f"{model} has no {which} version; `secateur registry promote` makes one")
        if number not in numbers:
            raise RegistryError(f"{model} has no version {number}; it has {', '.join(map(str, numbers))}")
        return self._version(model, number)

    def add(self, model: str, path: Path, lineage: Lineage, gates: Sequence[Gate]) -> Version:
        """Add the artifact at `path` as a version and make it the candidate; a known artifact keeps its number.

        Raises RegistryError if the name is not valid, or is a model's and the artifact a knowledge, or the reverse.
        """
        if not NAME.fullmatch(model):
            raise RegistryError(f"{model!r} is not a valid model name: use a-z, 0-9, and after the first letter . _ -")
        if (numbers := self.numbers(model)) and self._version(model, numbers[-1]).lineage.is_knowledge != (
            lineage.is_knowledge
        ):
            kinds = ("model", "knowledge") if lineage.is_knowledge else ("knowledge", "model")
            raise RegistryError(f"{model} is a {kinds[0]} here, and {path} is a {kinds[1]}: add it under another name")
        address, run = record.address(lineage), self._database.execute
        with self._database.transaction():
            run("INSERT INTO models VALUES (?, ?) ON CONFLICT DO NOTHING", (model, now()))
            known = run("SELECT number FROM versions WHERE model = ? AND address = ?", (model, address))
            number = known[0][0] if known else max(self.numbers(model), default=0) + 1
            if not known:
                text = msgspec.json.encode(lineage, order="sorted").decode()
                run("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (model, number, address, text, now()))
            upsert = "INSERT INTO paths VALUES (?, ?, ?) ON CONFLICT (model, number) DO UPDATE SET path = excluded.path"
            run(upsert, (model, number, str(path)))
            self._alias(model, "candidate", number)
            self._add_gates(model, number, gates)
        return self._version(model, number)

    def approve(self, version: Version, approval: Approval) -> None:
        """Append an approval."""
        values = [*msgspec.structs.astuple(approval)]
        row = (version.model, version.number, *values)
        self._database.execute("INSERT INTO approvals VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def moves(self, model: str) -> list[Move]:
        """Every change of production, oldest first."""
        columns = "move, kind, number, previous, reason, added, statement, signature"
        rows = self._database.execute(f"SELECT {columns} FROM moves WHERE model = ? ORDER BY move", (model,))
        return [Move(*row) for row in rows]

    def last_move(self, model: str) -> Move | None:
        """The latest change of production, if any."""
        return next(reversed(self.moves(model)), None)

    def move(self, model: str, move: Move) -> None:
        """Append `move` and update production; raises RegistryError if another process made this move first."""
        row = (model, *msgspec.structs.astuple(move))
        with self._database.transaction():
            columns = "model, move, kind, number, previous, reason, added, statement, signature"
            values = ", ".join("?" * len(row))
            statement = f"INSERT INTO moves ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING RETURNING move"
            if not self._database.execute(statement, row):
                now_at = self.moves(model)[-1]
                raise RegistryError(
                    f"{model}@production was moved to version {now_at.number} by somebody else meanwhile; "
                    "nothing was changed: check that version, then promote again if you still want to"
                )
            self._alias(model, "production", move.number)

    def bind(self, skills: Iterable[str], version: Version) -> None:
        """Record that a server answers requests for `skills` with `version` from now on."""
        with self._database.transaction():
            for skill in skills:
                row = (version.model, version.number, skill, now())
                self._database.execute("INSERT INTO bindings VALUES (?, ?, ?, ?)", row)

    def bindings(self, model: str) -> dict[str, tuple[int, str]]:
        """Skill -> (version number, since when) of the version that answers it."""
        rows = self._database.execute(
            "SELECT skill, number, added FROM bindings WHERE model = ? ORDER BY added", (model,)
        )
        return {skill: (number, added) for skill, number, added in rows}

    def _version(self, model: str, number: int) -> Version:
        run, key = self._database.execute, (model, number)
        [(address, text, added, path)] = run(
            "SELECT address, lineage, versions.added, path FROM versions JOIN paths USING (model, number) "
            "WHERE model = ? AND number = ?",
            key,
        )
        columns = "task, passed, figures, source, added, statement, signature"
        gates = run(f"SELECT {columns} FROM gates WHERE model = ? AND number = ?", key)
        columns = "kind, signer, reason, statement, signature, added"
        approvals = run(f"SELECT {columns} FROM approvals WHERE model = ? AND number = ? ORDER BY added", key)
        return Version(
            model,
            number,
            address,
            Path(path),
            added,
            self._lineage(model, number, text),
            tuple(sorted((_gate(row) for row in gates), key=lambda gate: gate.added)),
            tuple(Approval(*row) for row in approvals),
        )

    def _lineage(self, model: str, number: int, text: str) -> Lineage:
        """Decode a version's record; raises RegistryError if it was changed in the database."""
        try:
            return msgspec.json.decode(text, type=Lineage)
        except (msgspec.DecodeError, RecursionError) as error:
            where = f"the registry {self._database.where}"
            raise RegistryError(f"{where}: the record of {model}@{number} was changed: {error}") from None

    def _alias(self, model: str, alias: Alias, number: int) -> None:
        statement = (
            "INSERT INTO aliases (model, alias, number) VALUES (?, ?, ?) "
            "ON CONFLICT (model, alias) DO UPDATE SET number = excluded.number"
        )
        self._database.execute(statement, (model, alias, number))

    def _add_gates(self, model: str, number: int, gates: Sequence[Gate]) -> None:
        run, key = self._database.execute, (model, number)
        known = run("SELECT task, source, statement FROM gates WHERE model = ? AND number = ?", key)
        for gate in gates:
            result = gate.result
            if (result.task, gate.source, gate.statement) not in known:
                figures = msgspec.json.encode(result.figures, order="sorted").decode()
                row = (
                    *key,
                    result.task,
                    int(result.passed),
                    figures,
                    gate.source,
                    now(),
                    gate.statement,
                    gate.signature,
                )
                columns = "model, number, task, passed, figures, source, added, statement, signature"
                run(f"INSERT INTO gates ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def now() -> str:
    """The current UTC time in ISO 8601, with microseconds to order rows."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _gate(row: tuple[Any, ...]) -> Gate:
    task, passed, figures, *rest = row
    return Gate(GateResult(task, bool(passed), msgspec.json.decode(figures)), *rest)
