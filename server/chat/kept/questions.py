"""Questions that the pages did not answer, or answered badly, for the people who write the pages.

Kept only for skills with `keep_questions`, in the SQLite file of the ratings, for the skill's `questions_days`.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from server.skills.skill import Skill
from server.storage.connection import connect, opened
from server.storage.database import Options, StorageError

BUSY_SECONDS = 5.0
DAY = 86_400
LONGEST = 1000
"""Characters of a question that are kept."""
MOST = 10_000
"""Questions of a skill that are kept, the newest."""
TABLE = """CREATE TABLE IF NOT EXISTS questions (
  skill TEXT NOT NULL, asked_at REAL NOT NULL, why TEXT NOT NULL, text TEXT NOT NULL
)"""
LISTED = """
SELECT skill, why, text, count(*), max(asked_at) FROM questions WHERE skill = ? OR ? = ''
GROUP BY skill, why, text ORDER BY count(*) DESC, max(asked_at) DESC LIMIT ?
"""
STORE = "INSERT INTO questions VALUES (?, ?, ?, ?)"
PRUNE = """
DELETE FROM questions WHERE skill = ? AND (asked_at < ? OR rowid IN
(SELECT rowid FROM questions WHERE skill = ? ORDER BY asked_at DESC LIMIT -1 OFFSET ?))
"""
Why = Literal["refused", "rated down"]
logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A question, how often it was asked, and when last, in seconds since 1970."""

    skill: str
    why: Why
    text: str
    times: int
    last: float


class Questions:
    """Owns its connection to the SQLite file `path`; every method may be called from any thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        options = Options(BUSY_SECONDS, pragmas=("journal_mode = WAL",))
        self._database = opened(path, "questions", (TABLE,), options)

    def note(self, skill: Skill, why: Why, text: str) -> None:
        """Keep a question if the skill says so, and drop its expired ones; a failure is logged without the text."""
        if not skill.keep_questions:
            return
        now = self._clock()
        try:
            with self._lock, self._database.transaction():
                self._database.execute(STORE, (skill.name, now, why, text[:LONGEST]))
                self._database.execute(PRUNE, (skill.name, now - skill.questions_days * DAY, skill.name, MOST))
        except StorageError as error:
            logger.warning("A question of the skill %r was not kept: %s", skill.name, error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


def listed(path: Path, skill: str = "", limit: int = 100) -> list[Asked]:
    """The questions in `path` asked most often, of one skill or all; only reads. Raises StorageError."""
    with closing(connect(str(path), Options(read_only=True))) as database:
        return [Asked(*row) for row in database.execute(LISTED, (skill, skill, limit))]
