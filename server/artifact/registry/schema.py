"""The registry's tables, the same in SQLite and PostgreSQL; records, verdicts and moves are append-only."""

from server.errors import RegistryError
from server.storage.database import Database

VERSION = 2
SIGNED = "statement TEXT NOT NULL DEFAULT '', signature TEXT NOT NULL DEFAULT ''"
"""The columns of a signed row; both empty if it is not signed."""
OF_A_VERSION = "model TEXT NOT NULL, number INTEGER NOT NULL"
REFERENCES = "FOREIGN KEY (model, number) REFERENCES versions (model, number)"
TABLES = (
    "CREATE TABLE models (name TEXT PRIMARY KEY, added TEXT NOT NULL)",
    f"""CREATE TABLE versions ({OF_A_VERSION}, address TEXT NOT NULL, lineage TEXT NOT NULL, added TEXT NOT NULL,
  PRIMARY KEY (model, number), UNIQUE (model, address), FOREIGN KEY (model) REFERENCES models (name))""",
    f"CREATE TABLE paths ({OF_A_VERSION}, path TEXT NOT NULL, PRIMARY KEY (model, number), {REFERENCES})",
    f"""CREATE TABLE gates ({OF_A_VERSION}, task TEXT NOT NULL, passed INTEGER NOT NULL, figures TEXT NOT NULL,
  source TEXT NOT NULL, added TEXT NOT NULL, {SIGNED}, {REFERENCES})""",
    f"""CREATE TABLE approvals ({OF_A_VERSION}, kind TEXT NOT NULL CHECK (kind IN ('approval', 'override')),
  signer TEXT NOT NULL, reason TEXT NOT NULL, statement TEXT NOT NULL, signature TEXT NOT NULL, added TEXT NOT NULL,
  {REFERENCES})""",
    f"""CREATE TABLE aliases ({OF_A_VERSION}, alias TEXT NOT NULL CHECK (alias IN ('candidate', 'production')),
  PRIMARY KEY (model, alias), {REFERENCES})""",
    f"""CREATE TABLE moves ({OF_A_VERSION}, move INTEGER NOT NULL, kind TEXT NOT NULL, previous INTEGER,
  reason TEXT NOT NULL, added TEXT NOT NULL, {SIGNED}, PRIMARY KEY (model, move), {REFERENCES})""",
    f"CREATE TABLE bindings ({OF_A_VERSION}, skill TEXT NOT NULL, added TEXT NOT NULL, {REFERENCES})",
    "CREATE TABLE registry (version INTEGER NOT NULL)",
)
APPEND_ONLY = ("versions", "gates", "approvals", "moves", "bindings")
"""Not append-only: `paths`, since the address identifies the files; `aliases`, whose history is in `moves`."""


def prepare(database: Database, *, exists: bool) -> None:
    """Create the tables unless the registry `exists`, and upgrade one of version 1; RegistryError for a newer one."""
    if exists:
        _upgrade(database)
        return
    with database.transaction():
        for table in TABLES:
            database.execute(table)
        database.execute("INSERT INTO registry (version) VALUES (?)", (VERSION,))
        for name in APPEND_ONLY:
            database.make_append_only(name)


def _upgrade(database: Database) -> None:
    """Bring the registry to `VERSION`; the rows of version 1 stay, unsigned."""
    version = _version(database)
    if version == VERSION:
        return
    if version != 1:
        raise RegistryError(f"the registry {database.where} is of version {version}; this program knows {VERSION}")
    with database.transaction():
        if not database.claim_for_transaction("registry upgrade"):
            raise RegistryError(f"the registry {database.where} is being upgraded by another process: try again")
        if _version(database) == VERSION:
            return
        for table in ("gates", "moves"):
            for column in SIGNED.split(", "):
                database.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
        database.execute("UPDATE registry SET version = ?", (VERSION,))


def _version(database: Database) -> int:
    [(version,)] = database.execute("SELECT version FROM registry")
    return int(version)
