"""Experiments between the published revision of a skill and a rival, in the database of revisions."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from server.errors import InvalidRequest, NotFound
from server.skills.revisions.connection import LONGEST_REASON, Connection, next_id, now

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
            where, values = (" WHERE skill = ?", (skill,)) if skill is not None else ("", ())
            select = f"SELECT {COLUMNS} FROM skill_experiments{where} ORDER BY id"
            return [Trial(*row) for row in database.execute(select, values)]

    def current(self, skill: str, move: int) -> Trial | None:
        """The experiment that runs since the skill's last `move`, or None."""
        found = self.list(skill)
        return found[-1] if found and found[-1].action == "start" and found[-1].move == move else None

    def start(self, trial: Trial) -> Trial:
        """Keep a start, and return it with its id and time; raises InvalidRequest if one runs already."""
        if running := self.current(trial.skill, trial.move):
            raise InvalidRequest(
                f"{trial.skill}@{running.rival} is being compared with the published revision: stop that first.",
                code="experiment_running",
            )
        return self._keep(trial)

    def stop(self, skill: str, move: int, *, author: str, reason: str) -> Trial:
        """End the running experiment; raises NotFound if there is none."""
        found = self.current(skill, move)
        if found is None:
            raise NotFound(f"No experiment runs with {skill!r}.", code="no_experiment")
        return self._keep(
            Trial(0, skill, found.number, found.rival, found.share, found.move, "stop", author, "", reason)
        )

    def _keep(self, trial: Trial) -> Trial:
        with self._connection.transaction() as database:
            kept = Trial(
                next_id(database, "skill_experiments"),
                trial.skill,
                trial.number,
                trial.rival,
                trial.share,
                trial.move,
                trial.action,
                trial.author,
                now(),
                trial.reason[:LONGEST_REASON],
            )
            row = tuple(getattr(kept, name) for name in COLUMNS.split(", "))
            database.execute(f"INSERT INTO skill_experiments ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return kept
