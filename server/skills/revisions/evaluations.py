"""What revisions scored on tasks, and the gate that refuses to publish one that scores worse than the published one."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from server.intervals import Interval, difference
from server.skills.revisions.connection import Connection, next_id, now
from server.skills.revisions.trials import Gate

COLUMNS = "id, skill, digest, task, task_digest, model, author, made, scores"


class Evaluation(Struct, frozen=True):
    """The scores of one revision on one task: a value for each item, by measure."""

    skill: str
    digest: str
    """Of the revision's `Skill`: equal ones answer alike."""
    task: str
    task_digest: str
    """SHA-256 of the task with its items."""
    model: str
    author: str
    scores: Mapping[str, Sequence[float]]
    id: int = 0
    made: str = ""

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure."""
        return {name: sum(values) / len(values) for name, values in self.scores.items() if values}


class Verdict(Struct, frozen=True):
    """Whether a gate lets a revision pass, and why."""

    passed: bool
    reason: str
    task: str
    fall: Interval | None = None
    """What the measure loses against the published revision, if both were evaluated."""


class Evaluations:
    """The evaluations in the database of revisions; of a repeated one the last counts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, made: Evaluation) -> Evaluation:
        """Keep an evaluation, and return it with its id and time."""
        with self._connection.transaction() as database:
            kept = msgspec.structs.replace(made, id=next_id(database, "skill_evaluations"), made=now())
            row = [getattr(kept, name) for name in COLUMNS.split(", ")[:-1]]
            text = msgspec.json.encode(kept.scores).decode()
            statement = f"INSERT INTO skill_evaluations ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            database.execute(statement, (*row, text))
        return kept

    def latest(self, skill: str, digest: str) -> Mapping[str, Evaluation]:
        """The last evaluation of a revision on each task, by the task's name."""
        with self._connection.reading() as database:
            select = f"SELECT {COLUMNS} FROM skill_evaluations WHERE skill = ? AND digest = ? ORDER BY id"
            rows = database.execute(select, (skill, digest))
        return {row[3]: _evaluation(row) for row in rows}

    def verdict(self, gate: Gate, skill: str, own: tuple[int, str], published: tuple[int, str] | None) -> Verdict:
        """Judge a revision, given as number and digest, beside the published one."""
        scored = self.latest(skill, own[1]).get(gate.task)
        if scored is None:
            return Verdict(False, _missing(skill, own[0], gate.task), gate.task)
        if published is None or published[1] == own[1]:
            return Verdict(True, f"evaluated on {gate.task}; there is no other published revision", gate.task)
        reference = self.latest(skill, published[1]).get(gate.task)
        if reference is None or reference.task_digest != scored.task_digest:
            again = "" if reference is None else f" (the task {gate.task} has changed since it was)"
            return Verdict(False, f"{_missing(skill, published[0], gate.task)}{again}", gate.task)
        fall = difference(reference.scores[gate.measure], scored.scores[gate.measure], 0)
        before, after = reference.means[gate.measure], scored.means[gate.measure]
        reason = (
            f"{gate.measure} on {gate.task} is {after:.3f}, and {before:.3f} for {skill}@{published[0]}: it falls by "
            f"{fall.value:.3f} (95 % interval {fall.low:.3f} to {fall.high:.3f}), and may by {gate.max_drop:g}"
        )
        return Verdict(fall.high <= gate.max_drop, reason, gate.task, fall)


def _missing(skill: str, number: int, task: str) -> str:
    return (
        f"{skill}@{number} was not evaluated on the task {task}: "
        f"`secateur evaluate --skill {skill}@{number} --task FILE.toml --server SERVER.toml`"
    )


def _evaluation(row: Sequence[object]) -> Evaluation:
    named = dict(zip(COLUMNS.split(", "), row, strict=True))
    named["scores"] = msgspec.json.decode(str(named["scores"]))
    return msgspec.convert(named, Evaluation)
