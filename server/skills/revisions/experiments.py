"""Experiments between the published revision of a skill and a rival, in the database of revisions."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from server.errors import InvalidRequest, NotFound
from server.skills.revisions.connection import LONGEST_REASON, Connection, next_id, now
from server.storage.database import Database

COLUMNS = "id, skill, number, rival, share, move, action, author, made, reason"


class Trial(Struct, frozen=True):
    """A start or a stop of an experiment."""

    id: int
    skill: str
    number: int
    """The published revision."""
    rival: int
    share: float
    """The share of conversations that the rival answers."""
    move: int
    """The skill's last move when it was started."""
    action: Literal["start", "stop"]
    author: str
    made: str
    reason: str


class Experiments:
    """Starts and stops; a skill's last one tells whether an experiment runs, until its next publication."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, skill: str | None = None) -> Sequence[Trial]:
        """The starts and stops of one skill, or of all, the first first."""
        with self._connection.reading() as database:
            return _list(database, skill)

    def current(self, skill: str, move: int) -> Trial | None:
        """The experiment that runs since the skill's last `move`, or None."""
        with self._connection.reading() as database:
            return _current(database, skill, move)

    def start(self, trial: Trial) -> Trial:
        """Keep a start, and return it with its id and time; raises InvalidRequest if one runs already."""
        with self._connection.transaction() as database:
            if running := _current(database, trial.skill, trial.move):
                raise InvalidRequest(
                    f"{trial.skill}@{running.rival} is being compared with the published revision: stop that first.",
                    code="experiment_running",
                )
            return _keep(database, trial)

    def stop(self, skill: str, move: int, *, author: str, reason: str) -> Trial:
        """End the running experiment; raises NotFound if there is none."""
        with self._connection.transaction() as database:
            found = _current(database, skill, move)
            if found is None:
                raise NotFound(f"No experiment runs with {skill!r}.", code="no_experiment")
            return _keep(database, replace(found, action="stop", author=author, reason=reason))


def _list(database: Database, skill: str | None) -> Sequence[Trial]:
    where, values = (" WHERE skill = ?", (skill,)) if skill is not None else ("", ())
    select = f"SELECT {COLUMNS} FROM skill_experiments{where} ORDER BY id"
    return [Trial(*row) for row in database.execute(select, values)]


def _current(database: Database, skill: str, move: int) -> Trial | None:
    found = _list(database, skill)
    return found[-1] if found and found[-1].action == "start" and found[-1].move == move else None


def _keep(database: Database, trial: Trial) -> Trial:
    """Insert it with the next id and the time, within a transaction."""
    number = next_id(database, "skill_experiments")
    kept = replace(trial, id=number, made=now(), reason=trial.reason[:LONGEST_REASON])
    row = tuple(getattr(kept, name) for name in COLUMNS.split(", "))
    database.execute(f"INSERT INTO skill_experiments ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    return kept
