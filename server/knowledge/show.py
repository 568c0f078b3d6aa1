"""A knowledge in the terminal: a build's result, found passages, documents, and the difference of two."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from server.artifact.checkpoint.lineage import address
from server.knowledge.search import Found, Knowledge, Listed

if TYPE_CHECKING:
    from server.knowledge.build.building import Built

WIDTH = 110
MOST_LINES = 6
"""Lines of a passage that are shown."""


def built(made: "Built") -> Iterator[str]:
    """What a build did, with a line for each document that could not be read."""
    counts = made.counts
    for failure in made.failed:
        kept = " (its text from an earlier build is kept)" if failure.kept else ""
        yield f"not read: {printable(failure.document)}: {printable(failure.reason)}{kept}"
    yield (
        f"{counts.read} documents read, {counts.unchanged} unchanged, {counts.gone} gone, {len(made.failed)} not read; "
        f"{made.encoded} texts encoded"
    )
    unchanged = "" if made.changed else ": the artifact is as it was"
    yield f"{made.output}: {made.passages} passages of {made.documents} documents{unchanged}"


def results(knowledge: Knowledge, found: Sequence[Found]) -> Iterator[str]:
    """Each found passage with its scores, and what the thresholds make of the best one."""
    limits = knowledge.thresholds
    for number, one in enumerate(found, 1):
        passage = one.passage
        cosine = "" if one.cosine is None else f"  cosine {one.cosine:.3f}"
        same = f"  same question {one.same_question:.3f}" if one.same_question else ""
        yield f"{number}. {printable(passage.title)} {printable(passage.heading)}".rstrip()
        yield f"   {printable(passage.url)}"
        yield f"   score {one.score:.4f}{cosine}  coverage {one.coverage:.3f}{same}"
        lines = textwrap.wrap(printable(passage.text), WIDTH)
        yield from (f"   | {line}" for line in lines[:MOST_LINES])
        yield ""
    best = max((one.relevance for one in found), default=0.0)
    nearest = max((one.same_question for one in found), default=0.0)
    if best < limits.on_topic:
        verdict = "off topic: nothing here answers it"
    elif nearest >= limits.same_question:
        verdict = "a stored question asks the same"
    else:
        verdict = "on topic"
    told = f"on topic from {limits.on_topic}, same question from {limits.same_question}"
    yield f"{verdict} ({limits.measure} {best:.3f}; {told})"


def details(knowledge: Knowledge) -> Iterator[str]:
    """The artifact, its thresholds, its documents, and the ones that could not be read."""
    manifest, limits, found = knowledge.manifest, knowledge.thresholds, knowledge.manifest.calibration
    yield f"{manifest.name}: {manifest.passages} passages of {manifest.documents} documents"
    yield f"  address      {address(knowledge.lineage)}, made {knowledge.lineage.created}"
    yield f"  encoder      {manifest.encoder.reference if manifest.encoder else 'none: found by words alone'}"
    yield (
        f"  on topic     from {limits.measure} {limits.on_topic}: refuses {found.off_topic_refused:.0%} of "
        f"{found.off_topic} questions of other subjects (median {found.off_topic_median}, highest "
        f"{found.off_topic_highest}) and "
        f"{found.on_topic_refused:.0%} of {found.on_topic} of its own (median {found.on_topic_median})"
    )
    yield f"  same question from {limits.same_question}"
    if found.note:
        yield f"  note         {found.note}"
    for partition in knowledge.partitions:
        who = ", ".join(sorted(partition.groups)) or "everyone"
        yield f"  for          {printable(who)}: {partition.size} passages, words by {partition.tokenizer}"
    yield ""
    for document in knowledge.documents():
        yield f"{document.digest[:12]} {document.passages:>5}  {printable(document.name)}  {printable(document.title)}"
    for failure in manifest.failed:
        kept = " (its text from an earlier build is kept)" if failure.kept else ""
        yield f"not read: {printable(failure.document)}: {printable(failure.reason)}{kept}"


def difference(left: Knowledge, right: Knowledge) -> Iterator[str]:
    """A line for each document that one lacks or that changed, and for each setting and threshold that differs."""
    ours, theirs = _by_name(left), _by_name(right)
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if mine is None:
            yield f"+ {printable(name)}"
        elif other is None:
            yield f"- {printable(name)}"
        elif (mine.digest, mine.passages) != (other.digest, other.passages):
            yield f"~ {printable(name)}: {mine.passages} -> {other.passages} passages"
    for what, before, after in (
        ("settings", left.lineage.recipe, right.lineage.recipe),
        ("thresholds", msgspec.to_builtins(left.thresholds), msgspec.to_builtins(right.thresholds)),
    ):
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield f"{what}.{key}: {printable(str(before.get(key, '-')))} -> {printable(str(after.get(key, '-')))}"


def printable(text: str) -> str:
    """Text without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _by_name(knowledge: Knowledge) -> dict[str, Listed]:
    return {document.name: document for document in knowledge.documents()}
