"""The tables of kept texts, the same in SQLite and PostgreSQL. Times are seconds since 1970 on the database's clock."""

from server.errors import ConfigError
from server.storage.database import Database
from server.storage.postgres import advisory_key

VERSION = 2
RATINGS = (
    # `content` is sealed: the comment and the reasons.
    """CREATE TABLE ratings (
  reply TEXT PRIMARY KEY, skill TEXT NOT NULL, revision TEXT NOT NULL, rating TEXT NOT NULL,
  given_at DOUBLE PRECISION NOT NULL, content BYTEA NOT NULL
)""",
    "CREATE INDEX ratings_of_skill ON ratings (skill, given_at)",
    """CREATE TABLE rating_totals (
  instance TEXT, skill TEXT, rating TEXT, value BIGINT NOT NULL, PRIMARY KEY (instance, skill, rating)
)""",
    # Files of ratings that were moved here.
    "CREATE TABLE rating_moves (id TEXT PRIMARY KEY)",
)
TABLES = (
    "CREATE TABLE kept_texts (version INTEGER NOT NULL)",
    """CREATE TABLE conversations (
  id TEXT PRIMARY KEY, skill TEXT NOT NULL, visitor TEXT NOT NULL, begun_at DOUBLE PRECISION NOT NULL,
  used_at DOUBLE PRECISION NOT NULL, gone INTEGER NOT NULL
)""",
    "CREATE INDEX conversations_by_use ON conversations (used_at)",
    "CREATE INDEX conversations_by_visitor ON conversations (visitor)",
    # `content` is sealed: question, text, citations and how the reply ended.
    """CREATE TABLE turns (
  reply TEXT PRIMARY KEY, conversation TEXT NOT NULL, number BIGINT NOT NULL, message TEXT, revision TEXT NOT NULL,
  instance TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('beginning', 'running', 'ended')),
  alive_at DOUBLE PRECISION NOT NULL, stop INTEGER NOT NULL, rating TEXT, content BYTEA NOT NULL
)""",
    "CREATE INDEX turns_of_conversation ON turns (conversation, number)",
    "CREATE INDEX turns_live ON turns (alive_at) WHERE state <> 'ended'",
    """CREATE TABLE kept_replies (
  key TEXT PRIMARY KEY, ends_at DOUBLE PRECISION NOT NULL, size BIGINT NOT NULL, content BYTEA NOT NULL
)""",
    "CREATE INDEX kept_replies_by_end ON kept_replies (ends_at)",
    *RATINGS,
    "CREATE TABLE text_secrets (name TEXT PRIMARY KEY, value BYTEA NOT NULL)",
    f"INSERT INTO kept_texts VALUES ({VERSION})",
)


def prepare(database: Database) -> None:
    """Make the tables where they are missing, and those of ratings in version 1; raises ConfigError for a newer one."""
    with database.transaction():
        if database.shared:  # several replicas may start at once
            database.execute("SELECT pg_advisory_xact_lock(?)", (advisory_key("kept texts"),))
        if "kept_texts" not in database.tables():
            for statement in TABLES:
                database.execute(statement)
        [(version,)] = database.execute("SELECT version FROM kept_texts")
        if version == 1:
            for statement in (*RATINGS, f"UPDATE kept_texts SET version = {VERSION}"):
                database.execute(statement)
            version = VERSION
        if version != VERSION:
            raise ConfigError(
                f"{database.where} keeps conversations of version {version} and this secateur writes version {VERSION}:"
                " use the secateur that made them"
            )


def now(database: Database) -> float:
    """The database's own clock: replicas need not agree on theirs."""
    clock = "extract(epoch FROM clock_timestamp())" if database.shared else "(julianday('now') - 2440587.5) * 86400.0"
    return float(database.execute(f"SELECT {clock}")[0][0])
