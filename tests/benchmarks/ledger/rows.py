"""Fills a ledger with closed rows by SQL alone: a year of three replicas, twenty skills and two hundred keys."""

from server.metering.ledger.ledger import Ledger
from server.metering.ledger.schema import GROUPED, SUM_OF_ROWS, SUMMED
from server.storage.connection import connect
from server.storage.database import Database, Options

DAYS = 365
SKILLS = 20
KEYS = 200
EACH = KEYS // SKILLS
"""Keys of one skill."""
FIRST_DAY = "2025-12-01"
LAST_DAY = "2026-11-30"
NOW = 1796040000.0
"""2026-11-30, noon in UTC."""
NUMBERS = {
    "sqlite": "WITH RECURSIVE series(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n + 1 < {count}) ",
    "postgres": "WITH series AS (SELECT generate_series(0, {count} - 1)::bigint AS n) ",
}
DAY = {
    "sqlite": f"date('{FIRST_DAY}', '+' || (n * {DAYS} / {{count}}) || ' days')",
    "postgres": f"to_char(date '{FIRST_DAY}' + (n * {DAYS} / {{count}})::int, 'YYYY-MM-DD')",
}
CLOSED = f"{NOW} - ({{count}} - n) * {DAYS * 86400.0} / {{count}}"
MIXED = "((n * 2654435761) % 4294967296)"
"""A number that looks random, different for each row: it decides the key, the skill and the tokens."""
ROWS = f"""
INSERT INTO requests (request_id, sequence, instance, skill, revision, model, key_id, idempotency, state, outcome,
  opened_at, closed_at, day, reserved_tokens, prompt_tokens, cached_tokens, output_tokens, first_token_seconds,
  duration_seconds)
{{series}} SELECT 'chatcmpl-' || (1000000000 + n) || '-' || {MIXED}, n + 1, 'replica-' || (n % 3),
  'skill-' || ({MIXED} / 7 % {SKILLS}), 'sha256:0123456789abcdef', 'model-' || ({MIXED} / 7 % 2),
  CASE WHEN {MIXED} % 2 = 0 THEN '' ELSE 'key-' || ({MIXED} / 7 % {SKILLS} * {EACH} + {MIXED} % {EACH}) END,
  CASE WHEN n % 20 = 0 THEN 'idempotency-' || (1000000000 + n) END, 'final',
  CASE WHEN {MIXED} % 10 < 8 THEN 'stop' WHEN {MIXED} % 10 = 8 THEN 'length' ELSE 'client_gone' END,
  {CLOSED} - 3, {CLOSED}, {{day}}, 700, 100 + {MIXED} % 400, {MIXED} % 100, 1 + {MIXED} % 200,
  0.1 + {MIXED} % 100 / 100.0, 3.0
FROM series
"""
SUMS = (
    *(
        f"INSERT INTO tokens SELECT instance, skill, model, '{kind}', sum({column}) FROM daily "
        "GROUP BY instance, skill, model"
        for kind, column in (("input", "prompt_tokens"), ("cached", "cached_tokens"), ("output", "output_tokens"))
    ),
    "INSERT INTO outcomes SELECT instance, skill, model, outcome, sum(requests) FROM daily "
    "GROUP BY instance, skill, model, outcome",
    *(
        f"INSERT INTO {table} SELECT {owner}, {period}, sum(prompt_tokens + output_tokens), 0 FROM daily "
        f"WHERE {owner} <> '' GROUP BY {owner}, {period}"
        for table, owner in (("budgets", "skill"), ("key_budgets", "key_id"))
        for period in ("day", "substr(day, 1, 7)")
    ),
    "UPDATE cursors SET value = {count} WHERE name = 'sequence'",
)
DAILY = f"INSERT INTO daily ({', '.join((*GROUPED, *SUMMED))}) {SUM_OF_ROWS}"
FAST = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -3000000")
SLOW_IN_BULK = ("requests_request_id_key", "requests_sequence_key", "requests_idempotency_key")
"""PostgreSQL's constraints that are faster made after the rows than with each of them."""


def fill(where: str, count: int) -> None:
    """Make a ledger at `where` with `count` closed rows, and the sums that a server would have kept."""
    Ledger(where, instance="replica-0").close()
    database = connect(where, Options(pragmas=FAST))
    kind = "postgres" if database.shared else "sqlite"
    series = NUMBERS[kind].format(count=count)
    with database.transaction():
        if database.shared:
            _drop_constraints(database)
        rows = ROWS.format(series=series, day=DAY[kind].format(count=count), count=count)
        database.execute(rows.replace("%", "%%") if database.shared else rows)
        if database.shared:
            _make_constraints(database)
        for statement in (DAILY, *SUMS):
            database.execute(statement.format(count=count))
    database.execute("ANALYZE")
    database.close()


def _drop_constraints(database: Database) -> None:
    for name in SLOW_IN_BULK:
        database.execute(f"ALTER TABLE requests DROP CONSTRAINT {name}")
    database.execute("DROP INDEX requests_by_day")
    database.execute("SET LOCAL maintenance_work_mem = '1GB'")


def _make_constraints(database: Database) -> None:
    for name in SLOW_IN_BULK:
        column = name.removeprefix("requests_").removesuffix("_key")
        database.execute(f"ALTER TABLE requests ADD CONSTRAINT {name} UNIQUE ({column})")
    database.execute("CREATE INDEX requests_by_day ON requests (day, skill)")
