"""What the replies of each revision of a skill cost its visitors, from the rows of the ledger."""

from collections import Counter
from collections.abc import Collection

from msgspec import Struct, field

from server.metering.ledger.transactions import day_of
from server.storage.database import Database

ANSWERED = ("stop", "length", "budget", "client_gone", "refused", "verbatim")
"""Outcomes of replies that a visitor saw."""
ROWS = f"""
SELECT revision, outcome, prompt_tokens + output_tokens, output_tokens, count(*) FROM requests
WHERE day >= ? AND skill = ? AND opened_at >= ? AND key_id = '' AND state <> 'open'
AND outcome IN ({", ".join(f"'{name}'" for name in ANSWERED)})
GROUP BY revision, outcome, prompt_tokens + output_tokens, output_tokens
"""
FIRST = "SELECT min(opened_at) FROM requests WHERE skill = ? AND revision = ? AND key_id = ''"


class RevisionUse(Struct):
    """The replies of one revision to visitors."""

    replies: int = 0
    refused: int = 0
    """Of these, refused since the knowledge does not cover the question."""
    tokens: Counter[int] = field(default_factory=Counter)
    """Prompt and output tokens -> replies."""
    output: Counter[int] = field(default_factory=Counter)
    """Output tokens -> replies that the model wrote."""


def revision_use(database: Database, skill: str, revisions: Collection[str], since: float) -> dict[str, RevisionUse]:
    """The use of each of `revisions` since a moment, in seconds since 1970; callers with a key are left out."""
    found = {revision: RevisionUse() for revision in revisions}
    for revision, outcome, tokens, output, replies in database.execute(ROWS, (day_of(since), skill, since)):
        if (use := found.get(revision)) is None:
            continue
        use.replies += replies
        use.refused += replies if outcome == "refused" else 0
        use.tokens[tokens] += replies
        if output:
            use.output[output] += replies
    return found


def first_reply(database: Database, skill: str, revision: str) -> float | None:
    """When a revision first answered a visitor, in seconds since 1970; None if it never did."""
    [(moment,)] = database.execute(FIRST, (skill, revision))
    return None if moment is None else float(moment)
