"""The ledger's tables, the same in SQLite and PostgreSQL, and the upgrade of older ones."""

from server.errors import ConfigError
from server.storage.database import Database
from server.storage.postgres import advisory_key

VERSION = 4
KEY_BUDGETS = """CREATE TABLE key_budgets (
  key_id TEXT, period TEXT, used BIGINT NOT NULL, reserved BIGINT NOT NULL, PRIMARY KEY (key_id, period)
)"""
SUMMED = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
"""The sums of `daily`; `archived_` before them, those of the rows that an archive took out of `requests`."""
GROUPED = ("day", "instance", "skill", "revision", "model", "key_id", "outcome", "usage_from")
"""What `daily` sums by."""
DAILY = (
    f"""CREATE TABLE daily (
  {", ".join(f"{name} TEXT" for name in GROUPED)},
  {", ".join(f"{name} BIGINT NOT NULL" for name in SUMMED)},
  {", ".join(f"archived_{name} BIGINT NOT NULL DEFAULT 0" for name in SUMMED)},
  PRIMARY KEY ({", ".join(GROUPED)})
)""",
    """CREATE TABLE archives (
  digest TEXT PRIMARY KEY, name TEXT NOT NULL, before TEXT NOT NULL, through BIGINT NOT NULL,
  requests BIGINT NOT NULL, tokens BIGINT NOT NULL, moved_requests BIGINT NOT NULL, moved_tokens BIGINT NOT NULL
)""",
    # Days and months are read across all owners, which the primary keys begin with.
    "CREATE INDEX budgets_by_period ON budgets (period)",
    "CREATE INDEX key_budgets_by_period ON key_budgets (period)",
)
TABLES = (
    "CREATE TABLE ledger (version INTEGER NOT NULL)",
    # Rows are stored in order of opening, so the rows that an engine step changes share a page or two.
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
  duration_seconds DOUBLE PRECISION,
  knowledge_tokens BIGINT NOT NULL DEFAULT 0,
  retrieval_seconds DOUBLE PRECISION,
  usage_from TEXT NOT NULL DEFAULT 'ids'
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
    KEY_BUDGETS,
    *DAILY,
    "CREATE TABLE cursors (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    "INSERT INTO cursors VALUES ('sequence', 0), ('probe', 0)",
    f"INSERT INTO ledger VALUES ({VERSION})",
)
FROM_VERSION_2 = (
    KEY_BUDGETS,
    *(
        "INSERT INTO key_budgets "
        f"SELECT key_id, {period}, sum(CASE WHEN state = 'open' THEN 0 ELSE prompt_tokens + output_tokens END), "
        "sum(CASE WHEN state = 'open' THEN reserved_tokens ELSE 0 END) "
        f"FROM requests WHERE key_id <> '' GROUP BY key_id, {period}"
        for period in ("day", "substr(day, 1, 7)")
    ),
    "ALTER TABLE requests ADD COLUMN knowledge_tokens BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE requests ADD COLUMN retrieval_seconds DOUBLE PRECISION",
)
"""Version 3 added the budgets of API keys, and what retrieval cost."""
CLOSED_ROWS = f"""(
SELECT {", ".join(GROUPED[:-1])}, 'ids' AS usage_from, 1 AS requests, prompt_tokens, cached_tokens, output_tokens
FROM requests WHERE state <> 'open') AS closed"""
"""The closed rows of a ledger before version 4 with the columns of `daily`, for a FROM clause."""
SUM_OF_ROWS = f"""SELECT {", ".join(GROUPED)}, {", ".join(f"sum({name})" for name in SUMMED)} FROM {CLOSED_ROWS}
GROUP BY {", ".join(GROUPED)}"""
FROM_VERSION_3 = (
    "ALTER TABLE requests ADD COLUMN usage_from TEXT NOT NULL DEFAULT 'ids'",
    *DAILY,
    f"INSERT INTO daily ({', '.join((*GROUPED, *SUMMED))}) {SUM_OF_ROWS}",
)
"""Version 4 added who counted the tokens, the sums by day, and archives."""
UPGRADES = {2: (*FROM_VERSION_2, *FROM_VERSION_3), 3: FROM_VERSION_3}
SEEN = "SELECT instance FROM outcomes UNION SELECT instance FROM requests WHERE state = 'open'"


def prepare(database: Database) -> None:
    """Create the tables in an empty database, or upgrade those of version 2 and 3.

    Raises ConfigError for a newer ledger, another program's database, or an upgrade while replicas still write.
    """
    with database.transaction():
        if database.shared:  # several replicas may start at once
            database.execute("SELECT pg_advisory_xact_lock(?)", (advisory_key("schema"),))
        tables = database.tables()
        if "ledger" in tables:
            _upgrade(database)
            return
        if "requests" in tables:
            raise ConfigError(f"{database.where} is another program's database: name a new ledger")
        for statement in TABLES:
            database.execute(statement.replace("{identity}", database.identity))


def _upgrade(database: Database) -> None:
    """Bring the tables to VERSION; an older secateur on the same ledger would leave sums as they are."""
    [(version,)] = database.execute("SELECT version FROM ledger")
    if version == VERSION:
        return
    if version not in UPGRADES:
        raise ConfigError(
            f"{database.where} is a ledger of version {version} and this secateur writes version {VERSION}: "
            "use the secateur that made it, or name a new ledger"
        )
    for (instance,) in database.execute(SEEN) if database.shared else ():
        if not database.claim_for_transaction(instance):
            raise ConfigError(
                f"{database.where} is a ledger of version {version} that instance {instance!r} still writes to: "
                "stop all replicas, then start this secateur, which upgrades it"
            )
    for statement in (*UPGRADES[version], f"UPDATE ledger SET version = {VERSION}"):
        database.execute(statement)


def closed_sums(database: Database) -> str:
    """Where to read the sums of closed rows, for a FROM clause: `daily`, or the rows of a ledger before version 4."""
    return "daily" if "daily" in database.tables() else CLOSED_ROWS
