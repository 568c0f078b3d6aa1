"""The ledger's tables, the same in SQLite and PostgreSQL, and how the first version of them becomes this one."""

from server.errors import ConfigError
from server.storage.database import Database
from server.storage.postgres import advisory_key

VERSION = 2
TABLES = (
    "CREATE TABLE ledger (version INTEGER NOT NULL)",
    # A row's place in the table is its time of opening: the rows that each engine step changes lie on a page or two.
    """CREATE TABLE requests (
  id {identity},
  request_id TEXT NOT NULL UNIQUE,
  sequence BIGINT UNIQUE,
  instance TEXT NOT NULL,
  skill TEXT NOT NULL,
  revision TEXT NOT NULL,
  model TEXT NOT NULL,
  key_id TEXT NOT NULL,
  idempotency TEXT UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('open', 'final', 'recovered')),
  outcome TEXT,
  opened_at DOUBLE PRECISION NOT NULL,
  closed_at DOUBLE PRECISION,
  day TEXT NOT NULL,
  reserved_tokens BIGINT NOT NULL,
  prompt_tokens BIGINT NOT NULL DEFAULT 0,
  cached_tokens BIGINT NOT NULL DEFAULT 0,
  output_tokens BIGINT NOT NULL DEFAULT 0,
  first_token_seconds DOUBLE PRECISION,
  duration_seconds DOUBLE PRECISION
)""",
    "CREATE INDEX requests_open ON requests (instance) WHERE state = 'open'",
    "CREATE INDEX requests_by_day ON requests (day, skill)",
    """CREATE TABLE tokens (
  instance TEXT, skill TEXT, model TEXT, type TEXT, value BIGINT NOT NULL, PRIMARY KEY (instance, skill, model, type)
)""",
    """CREATE TABLE outcomes (
  instance TEXT, skill TEXT, model TEXT, outcome TEXT, value BIGINT NOT NULL,
  PRIMARY KEY (instance, skill, model, outcome)
)""",
    """CREATE TABLE budgets (
  skill TEXT, period TEXT, used BIGINT NOT NULL, reserved BIGINT NOT NULL, PRIMARY KEY (skill, period)
)""",
    "CREATE TABLE cursors (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    "INSERT INTO cursors VALUES ('sequence', 0), ('probe', 0)",
    f"INSERT INTO ledger VALUES ({VERSION})",
)
UPGRADE = (
    """INSERT INTO requests (request_id, instance, skill, revision, model, key_id, state, outcome, opened_at, closed_at,
  day, reserved_tokens, prompt_tokens, cached_tokens, output_tokens)
SELECT request_id, '', skill, '', model, '', state, outcome, opened_at, max(opened_at, closed_at),
  date(opened_at, 'unixepoch'), 0, CASE WHEN state = 'open' THEN 0 ELSE prompt_tokens END, cached_tokens, output_tokens
FROM old_requests ORDER BY opened_at, request_id""",
    """UPDATE requests SET sequence = numbered.place FROM
  (SELECT id, row_number() OVER (ORDER BY id) AS place FROM requests WHERE state <> 'open') AS numbered
WHERE numbered.id = requests.id""",
    "UPDATE cursors SET value = (SELECT coalesce(max(sequence), 0) FROM requests) WHERE name = 'sequence'",
    "INSERT INTO tokens SELECT '', skill, model, type, value FROM old_tokens",
    "INSERT INTO outcomes SELECT '', skill, model, outcome, value FROM old_outcomes",
    """INSERT INTO budgets SELECT skill, day, sum(prompt_tokens + output_tokens), 0 FROM requests
WHERE state <> 'open' GROUP BY skill, day""",
    """INSERT INTO budgets SELECT skill, substr(day, 1, 7), sum(prompt_tokens + output_tokens), 0 FROM requests
WHERE state <> 'open' GROUP BY skill, substr(day, 1, 7)""",
)
OLD = ("requests", "tokens", "outcomes")


def prepare(database: Database) -> None:
    """Make the tables where there are none, and bring those of version 1 along; raises ConfigError for a newer one."""
    with database.transaction():
        if database.shared:  # several replicas may start at once
            database.execute("SELECT pg_advisory_xact_lock(?)", (advisory_key("schema"),))
        tables = database.tables()
        if "ledger" in tables:
            version = database.execute("SELECT version FROM ledger")[0][0]
            if version != VERSION:
                raise ConfigError(
                    f"{database.where} is a ledger of version {version} and this secateur writes version {VERSION}: "
                    "use the secateur that made it, or name a new ledger"
                )
            return
        if "requests" in tables:
            _upgrade(database)
        else:
            _make(database)


def _make(database: Database) -> None:
    for statement in TABLES:
        database.execute(statement.replace("{identity}", database.identity))


def _upgrade(database: Database) -> None:
    """Carry version 1's rows and totals over."""
    database.execute("DROP INDEX IF EXISTS open_requests")
    for table in OLD:
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    _make(database)
    for statement in (*UPGRADE, *(f"DROP TABLE old_{table}" for table in OLD)):
        database.execute(statement)
