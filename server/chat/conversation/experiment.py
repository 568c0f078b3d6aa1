"""How the two revisions of an experiment did with visitors: ratings, refusals, tokens and lengths, with intervals."""

from collections import Counter
from datetime import UTC, datetime

from msgspec import Struct

from server.chat.kept.feedback import Feedback
from server.intervals import (
    Interval,
    difference_of_counts,
    difference_of_shares,
    mean_of_counts,
    share,
)
from server.metering.ledger.revisions import RevisionUse, first_reply, revision_use
from server.skills.revisions.splitting import Running
from server.skills.skill import Skill
from server.storage.database import Database


class Figures(Struct, frozen=True):
    """Means and shares with 95 % intervals over replies; None where there is none."""

    liked: Interval | None
    """Share of ratings that are up."""
    refused: Interval | None
    """Share of replies that were refused, since the knowledge does not cover the question."""
    tokens: Interval | None
    """Prompt and output tokens of a reply."""
    length: Interval | None
    """Output tokens of a reply that the model wrote."""


class Arm(Struct, frozen=True):
    """One side of an experiment."""

    number: int
    """The revision's number; 0 for a file."""
    digest: str
    replies: int
    ratings: int
    figures: Figures


class Results(Struct, frozen=True):
    """Both sides of an experiment since its start."""

    skill: str
    share: float
    """The share of conversations that the rival answers."""
    since: str
    """ISO 8601 in UTC; empty if the rival has answered nobody."""
    published: Arm
    rival: Arm
    difference: Figures
    """The rival's figures minus those of the published revision."""


def results(skill: Skill, experiment: Running, database: Database, feedback: Feedback) -> Results:
    """The figures of a running experiment; raises StorageError of the ledger and FeedbackUnavailable."""
    digests = (skill.revision, experiment.rival.revision)
    since = experiment.since or first_reply(database, skill.name, digests[1])
    uses = revision_use(database, skill.name, digests, since) if since else {}
    ratings = feedback.counts(since) if since else Counter[tuple[str, str, str]]()
    use = [uses.get(digest) or RevisionUse() for digest in digests]
    arms = [
        _arm(number, digest, one, ratings[skill.name, digest, "up"], ratings[skill.name, digest, "down"])
        for number, digest, one in zip(experiment.numbers, digests, use, strict=True)
    ]
    moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds") if since else ""
    return Results(skill.name, experiment.share, moment, arms[0], arms[1], _difference(arms, use))


def _arm(number: int, digest: str, use: RevisionUse, up: int, down: int) -> Arm:
    figures = Figures(
        share(up, up + down),
        share(use.refused, use.replies),
        mean_of_counts(use.tokens, 0),
        mean_of_counts(use.output, 0),
    )
    return Arm(number, digest, use.replies, up + down, figures)


def _difference(arms: list[Arm], use: list[RevisionUse]) -> Figures:
    before, after = (arm.figures for arm in arms)
    return Figures(
        difference_of_shares(after.liked, before.liked),
        difference_of_shares(after.refused, before.refused),
        difference_of_counts(use[1].tokens, use[0].tokens, 0),
        difference_of_counts(use[1].output, use[0].output, 0),
    )
