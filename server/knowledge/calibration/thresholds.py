"""Finds the thresholds between questions on the documents' topic and questions of other subjects.

On topic are the documents' own stored questions, or their headings where there are few. Each is searched with its own
heading and question taken out of its passage, as a visitor's wording is not that of the page. Off topic is the list in
`off_topic.txt`. The limit refuses at least 95 % of that list; where 90 % of the own questions lie higher, it is in the
middle between the two shares. Headings are poorer questions than a visitor's, so their share is a lower bound.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files

import numpy
from msgspec import Struct

from server.knowledge.index.schema import Row
from server.knowledge.index.vectors import Vector
from server.knowledge.record import Calibration, Measure, Thresholds

MOST_ON_TOPIC = 100
"""Headings and questions that are drawn, by the order of their digests."""
ENOUGH_QUESTIONS = 20
"""Stored questions from which on headings are left out."""
FEWEST_WORDS = 3
"""Words of a question or heading at least."""
OFF_TOPIC_REFUSED, ON_TOPIC_REFUSED = 0.95, 0.10
"""Shares that the limit refuses: at least, and at most where the questions allow it."""
FEWEST_ON_TOPIC = 5
"""With fewer the limits are the ones below."""
DEFAULT_ON_TOPIC = {"cosine": 0.35, "coverage": 0.3}
DEFAULT_SAME_QUESTION = {"cosine": 0.9, "coverage": 0.9}
STEP = 1e-4
"""The precision of a threshold."""
MARGIN = 0.02
"""How far the limit of equal questions lies above the nearest pair of different ones."""
LOWEST_SAME_QUESTION = 0.85


class Probe(Struct, frozen=True):
    """A question from the documents, and what its passage says without it."""

    row: int
    """The passage's place in the index, from 0."""
    question: str
    rest: str
    """Title and text, without the heading or question that is asked."""


def off_topic() -> list[str]:
    """The questions of other subjects."""
    text = files("server.knowledge.calibration").joinpath("off_topic.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def probes(rows: Sequence[Row]) -> list[Probe]:
    """At most MOST_ON_TOPIC different questions on the topic, drawn by their digests."""
    stored: dict[str, Probe] = {}
    headings: dict[str, Probe] = {}
    for place, row in enumerate(rows):
        passage = row.passage
        asked = passage.question or (passage.headings[-1] if passage.headings else "")
        if len(asked.split()) >= FEWEST_WORDS:
            above = [passage.title, *(heading for heading in passage.headings if heading != asked)]
            probe = Probe(place, asked, "\n".join([*filter(None, above), passage.text]))
            (stored if passage.question else headings).setdefault(asked, probe)
    found = stored if len(stored) >= ENOUGH_QUESTIONS else headings | stored
    drawn = sorted(found.values(), key=lambda probe: hashlib.sha256(probe.question.encode()).hexdigest())
    return drawn[:MOST_ON_TOPIC]


def relevance(asked: Vector, rests: Vector, passages: Vector, own: Sequence[int]) -> list[float]:
    """The best cosine of each question: with its own passage without it, or with any other passage.

    All are unit vectors: `asked` and `rests` [probes, dimension], `passages` [passages, dimension]; `own` has the rows.
    """
    best = numpy.full(len(asked), -1.0)
    for start in range(0, len(passages), 4096):
        block = asked @ passages[start : start + 4096].T
        for probe, row in enumerate(own):
            if start <= row < start + 4096:
                block[probe, row - start] = float(asked[probe] @ rests[probe])
        best = numpy.maximum(best, block.max(axis=1))
    return [float(value) for value in best]


def nearest_questions(questions: Vector) -> list[float]:
    """The highest cosine of each stored question with another one, of at most 2000."""
    taken = questions[:2000]
    if len(taken) < 2:
        return []
    cosines = taken @ taken.T
    numpy.fill_diagonal(cosines, -1.0)
    return [float(value) for value in cosines.max(axis=1)]


def calibrated(
    on_topic: Sequence[float], off: Sequence[float], others: Sequence[float], measure: Measure
) -> tuple[Thresholds, Calibration]:
    """The thresholds, and how well they part the two kinds of questions that they were found with."""
    enough = len(on_topic) >= FEWEST_ON_TOPIC
    limit = _between(on_topic, off) if enough else DEFAULT_ON_TOPIC[measure]
    note = "" if enough else f"fewer than {FEWEST_ON_TOPIC} headings or questions: the limit is the package's own"
    distinct = [value for value in others if value < 0.98]  # nearer ones are one question asked on two pages
    near = float(numpy.quantile(distinct, 0.99)) + MARGIN if distinct else DEFAULT_SAME_QUESTION[measure]
    same = min(max(near, LOWEST_SAME_QUESTION), 0.99)
    return (
        Thresholds(round(limit, 4), round(same, 4), measure),
        Calibration(
            on_topic=len(on_topic),
            off_topic=len(off),
            on_topic_refused=_share_below(on_topic, limit),
            off_topic_refused=_share_below(off, limit),
            on_topic_median=_median(on_topic),
            off_topic_median=_median(off),
            off_topic_highest=round(max(off, default=0.0), 4),
            note=note,
        ),
    )


def _between(on_topic: Sequence[float], off: Sequence[float]) -> float:
    """The limit between the two kinds of questions."""
    low = float(numpy.quantile(off, OFF_TOPIC_REFUSED, method="higher")) + STEP
    high = float(numpy.quantile(on_topic, ON_TOPIC_REFUSED, method="lower"))
    return max(low, (low + high) / 2)


def _share_below(values: Sequence[float], limit: float) -> float:
    return round(sum(value < limit for value in values) / len(values), 4) if values else 0.0


def _median(values: Sequence[float]) -> float:
    return round(float(numpy.median(values)), 4) if values else 0.0
