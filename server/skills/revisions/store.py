"""Revisions of skills: immutable, numbered texts, and the moves that publish them.

A move publishes a revision of a skill, or withdraws the skill; the last move of a skill says what is served.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct

from server.errors import ConfigError, Conflict, InvalidRequest, NotFound
from server.skills.revisions.connection import LONGEST_REASON, Connection, next_id, now
from server.skills.revisions.evaluations import Evaluations, Verdict
from server.skills.revisions.experiments import Experiments, Trial
from server.skills.revisions.splitting import Running, split
from server.skills.revisions.text import parse
from server.skills.skill import Skill
from server.storage.database import Database
from server.storage.postgres import without_password

Action = Literal["publish", "rollback", "withdraw"]


class Revision(Struct, frozen=True):
    """One saved text of a skill."""

    skill: str
    number: int
    """1 for the skill's first, then counting."""
    digest: str
    """`Skill.revision`, which the ledger records with each reply."""
    author: str
    made: str
    """ISO 8601, UTC."""
    reason: str
    text: str = ""


class Move(Struct, frozen=True):
    """A change of what is served; `number` is the revision, 0 for none."""

    id: int
    skill: str
    number: int
    action: Action
    author: str
    made: str
    reason: str


class Revisions:
    """Owns one connection to `where`; every method may be called from any thread and raises RevisionsUnavailable.

    `folder` is where the files of keys lie. Raises ConfigError if the database cannot be used.
    """

    def __init__(self, where: str, folder: Path) -> None:
        self.where = without_password(where)
        self._folder = folder
        self._connection = Connection(where)
        self.experiments = Experiments(self._connection)
        self.evaluations = Evaluations(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def save(self, name: str, text: str, *, author: str, reason: str, after: int | None = None) -> Revision:
        """Keep `text` as the skill's next revision, and return it; the same text again returns the last one.

        Raises ConfigError for a mistake in the text, and Conflict if `after` is given and another revision was saved
        since that one.
        """
        skill = parse(text, self._folder, name)
        with self._connection.transaction() as database:
            last = self._last(database, name)
            if after is not None and (last.number if last else 0) != after:
                number, who = (last.number, last.author) if last else (0, "nobody")
                raise Conflict(f"{name}@{number} was saved meanwhile by {who}: compare it, then save again.")
            if last is not None and last.text == text:
                return last
            number = (last.number if last else 0) + 1
            made = Revision(name, number, skill.revision, author, now(), reason[:LONGEST_REASON], text)
            row = (made.skill, made.number, made.digest, made.author, made.made, made.reason, made.text)
            database.execute(f"INSERT INTO skill_revisions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return made

    def publish(self, name: str, number: int, *, author: str, reason: str, action: Action = "publish") -> Move:
        """Serve this revision from now on; raises NotFound, and Conflict if a gate does not let it pass."""
        found = self.get(name, number)
        verdict = self.verdict(found) if action == "publish" else None
        if verdict is not None and not verdict.passed:
            raise Conflict(f"The gate does not let {name}@{number} pass: {verdict.reason}.", code="gate_failed")
        return self._move(name, number, action, author, reason)

    def rollback(self, name: str, *, author: str, reason: str) -> Move:
        """Serve again what was served before the skill's last move; raises NotFound if nothing was."""
        moves = self.moves(name)
        before = [move.number for move in moves if move.number != moves[-1].number] if moves else []
        if not before:
            raise NotFound(f"Nothing else was published of {name!r} before.", param="name")
        return self._move(name, before[-1], "rollback", author, reason)

    def withdraw(self, name: str, *, author: str, reason: str) -> Move:
        """Serve no revision of the skill any more, but its file, if there is one."""
        return self._move(name, 0, "withdraw", author, reason)

    def get(self, name: str, number: int | Literal["published", "draft"]) -> Revision:
        """A revision with its text, by number, the published one, or the latest; raises NotFound."""
        asked = number
        if number == "published":
            number = next((move.number for move in reversed(self.moves(name))), 0)
        with self._connection.reading() as database:
            if number == "draft":
                found = self._last(database, name)
            else:
                select = f"SELECT {COLUMNS} FROM skill_revisions WHERE skill = ? AND number = ?"
                found = next((Revision(*row) for row in database.execute(select, (name, number))), None)
        if found is None:
            raise NotFound(f"There is no revision {name}@{asked}.", param="revision")
        return found

    def names(self) -> list[str]:
        """The skills that have revisions."""
        with self._connection.reading() as database:
            return [name for (name,) in database.execute("SELECT DISTINCT skill FROM skill_revisions ORDER BY skill")]

    def list(self, name: str) -> Sequence[Revision]:
        """The skill's revisions without their texts, the first first."""
        with self._connection.reading() as database:
            select = f"SELECT {COLUMNS.removesuffix(', content')} FROM skill_revisions WHERE skill = ? ORDER BY number"
            return [Revision(*row) for row in database.execute(select, (name,))]

    def moves(self, name: str | None = None) -> Sequence[Move]:
        """The moves of one skill, or of all, the first first."""
        with self._connection.reading() as database:
            select = "SELECT id, skill, number, action, author, made, reason FROM skill_moves"
            where, values = (" WHERE skill = ?", (name,)) if name is not None else ("", ())
            return [Move(*row) for row in database.execute(f"{select}{where} ORDER BY id", values)]

    def stamp(self) -> int:
        """A number that grows with each move, and each start or stop of an experiment."""
        with self._connection.reading() as database:
            return sum(next_id(database, table) for table in ("skill_moves", "skill_experiments"))

    def published(self) -> Sequence[Skill]:
        """Every skill with a published revision, with its experiment; raises ConfigError for one that is unreadable."""
        current = {move.skill: move for move in self.moves()}
        return [self._served(move) for move in current.values() if move.number]

    def verdict(self, revision: Revision) -> Verdict | None:
        """How the gate judges a revision, as `judge` has it."""
        return self.judge(revision.skill)(revision)

    def judge(self, name: str) -> Callable[[Revision], Verdict | None]:
        """Judges the skill's revisions by the gate of the published one, else by their own; None without a gate.

        Where this release cannot read the published one, only their own holds.
        """
        moves = self.moves(name)
        published = self.get(name, moves[-1].number) if moves and moves[-1].number else None
        other = (published.number, published.digest) if published else None
        kept = None
        if published is not None:
            with suppress(ConfigError):
                kept = parse(published.text, self._folder, name).gate

        def judged(revision: Revision) -> Verdict | None:
            try:
                own = parse(revision.text, self._folder, name)
            except ConfigError as error:  # saved by another release
                return Verdict(False, str(error), "")
            gate = kept or own.gate
            if gate is None:
                return None
            return self.evaluations.verdict(gate, name, (revision.number, revision.digest), other)

        return judged

    def compare(self, name: str, rival: int, share: float, *, author: str, reason: str) -> Trial:
        """Let the revision `rival` answer a share of the conversations beside the published one.

        Raises NotFound, and InvalidRequest if the two cannot be compared or an experiment runs already.
        """
        moves = self.moves(name)
        number = moves[-1].number if moves else 0
        if not number:
            raise InvalidRequest(f"No revision of {name!r} is published to compare with.", code="experiment_invalid")
        if not 0 < share < 1:
            raise InvalidRequest(
                f"The share is {share:g}: write a number between 0 and 1, such as 0.5.", code="experiment_invalid"
            )
        if number == rival:
            raise InvalidRequest(
                f"{name}@{rival} is published already: name another revision.", code="experiment_invalid"
            )
        trial = Trial(0, name, number, self.get(name, rival).number, share, moves[-1].id, "start", author, "", reason)
        try:
            self._split(self.get(name, number), trial)
        except ConfigError as error:
            raise InvalidRequest(f"{error}.", code="experiment_invalid") from None
        return self.experiments.start(trial)

    def trial(self, name: str) -> Trial | None:
        """The experiment that runs with a skill, or None."""
        moves = self.moves(name)
        return self.experiments.current(name, moves[-1].id) if moves else None

    def end(self, name: str, *, author: str, reason: str) -> Trial:
        """Stop the experiment with a skill; raises NotFound if none runs."""
        moves = self.moves(name)
        return self.experiments.stop(name, moves[-1].id if moves else 0, author=author, reason=reason)

    def decide(
        self, name: str, number: int | Literal["published", "draft"], *, author: str, reason: str
    ) -> Move | Trial:
        """Publish the winner, which ends the experiment; if it is the published one, only end it.

        Raises NotFound if none runs, InvalidRequest for a revision that takes no part, and Conflict as `publish` does.
        """
        trial = self.trial(name)
        if trial is None:
            raise NotFound(f"No experiment runs with {name!r}.", code="no_experiment")
        if number not in (trial.number, trial.rival):
            raise InvalidRequest(
                f"{name}@{number} takes no part: choose {trial.number} or {trial.rival}.", code="experiment_invalid"
            )
        if number == trial.number:
            return self.end(name, author=author, reason=reason)
        return self.publish(name, trial.rival, author=author, reason=reason)

    def _served(self, move: Move) -> Skill:
        found, trial = self.get(move.skill, move.number), self.experiments.current(move.skill, move.id)
        return self._split(found, trial) if trial else parse(found.text, self._folder, move.skill)

    def _split(self, found: Revision, trial: Trial) -> Skill:
        """The published revision with its experiment; raises ConfigError."""
        name = found.skill
        since = datetime.fromisoformat(trial.made).timestamp() if trial.made else 0.0
        rival = parse(self.get(name, trial.rival).text, self._folder, name)
        experiment = Running(
            file=f"{name}@{trial.rival}",
            share=trial.share,
            rival=rival,
            numbers=(trial.number, trial.rival),
            since=since,
        )
        return split(f"{name}@{trial.rival}", parse(found.text, self._folder, name), experiment)

    def _move(self, name: str, number: int, action: Action, author: str, reason: str) -> Move:
        with self._connection.transaction() as database:
            move = Move(next_id(database, "skill_moves"), name, number, action, author, now(), reason[:LONGEST_REASON])
            row = (move.id, name, number, action, author, move.made, move.reason)
            database.execute("INSERT INTO skill_moves VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return move

    def _last(self, database: Database, name: str) -> Revision | None:
        select = f"SELECT {COLUMNS} FROM skill_revisions WHERE skill = ? ORDER BY number DESC LIMIT 1"
        return next((Revision(*row) for row in database.execute(select, (name,))), None)


COLUMNS = "skill, number, digest, author, made, reason, content"
