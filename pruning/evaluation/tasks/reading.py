"""Reads a task from TOML and its items from JSON Lines; every error names the file, the place and what is allowed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pruning.data.documents import Document
from pruning.errors import TaskError
from pruning.evaluation.tasks.task import (
    Asked,
    BehaviourTask,
    ChatTask,
    ChoiceTask,
    HarnessTask,
    Item,
    KnowledgeTask,
    Pair,
    PairsTask,
    Prompt,
    Question,
    Task,
    TextTask,
    Transcript,
)
from pruning.recipe.bounds import Gates
from pruning.recipe.recipe import read_as

ITEMS: dict[type[Task], type[Item]] = {
    PairsTask: Pair,
    ChoiceTask: Question,
    ChatTask: Transcript,
    BehaviourTask: Prompt,
    KnowledgeTask: Asked,
}
"""The type of the items of each kind of task that has items."""


def read_task(path: Path) -> Task:
    """The task in the TOML file `path`, with the items to score; raises TaskError before any model is loaded."""
    task: Task = read_as(Task, path, TaskError)
    _check_gates(path, task)
    if isinstance(task, HarnessTask):
        folder = str((path.parent / task.folder).resolve()) if task.folder else ""
        return msgspec.structs.replace(task, folder=folder)
    if isinstance(task, TextTask):
        return task
    if isinstance(task, KnowledgeTask):
        task = _with_files(path, task)
    place = path
    if isinstance(task.items, str):
        place = path.parent / task.items
        items: Sequence[Item] = _read_items(place, ITEMS[type(task)])
    else:
        items = task.items
    return msgspec.structs.replace(task, items=_scored_items(place, task, items))


def unmeasured_gates(task: Task) -> set[str]:
    """The gates whose figure this kind of task does not measure."""
    accuracy = (
        isinstance(task, PairsTask | ChoiceTask | KnowledgeTask | HarnessTask) and getattr(task, "choices", 2) > 0
    )
    searched = ("max_missed", "max_off_topic_answered", "max_on_topic_refused", "max_unsupported", "max_wrong")
    generates = isinstance(task, KnowledgeTask) or (isinstance(task, PairsTask) and task.greedy > 0)
    lacks = dict.fromkeys(searched, not isinstance(task, KnowledgeTask)) | {
        "max_nll_ratio": isinstance(task, BehaviourTask),
        "max_accuracy_drop": not accuracy,
        "max_exact_drop": not (isinstance(task, PairsTask) and task.greedy > 0),
        "max_contained_drop": not generates,
        "max_kl": not isinstance(task, BehaviourTask),
    }
    return {gate for gate, lacking in lacks.items() if lacking}


def with_gates(task: Task, gates: Gates) -> Task:
    """Add to `task` those of `gates` that it measures; of two limits on one figure the stricter wins."""
    limits = {}
    for gate in gates.__struct_fields__:
        given = [getattr(task.gates, gate), None if gate in unmeasured_gates(task) else getattr(gates, gate)]
        limits[gate] = min((limit for limit in given if limit is not None), default=None)
    held: Task = msgspec.structs.replace(task, gates=Gates(**limits))
    return held


def _check_gates(path: Path, task: Task) -> None:
    """Raise TaskError for a gate on a figure that this kind of task does not measure."""
    for gate in sorted(unmeasured_gates(task)):
        if getattr(task.gates, gate) is not None:
            kind = type(task).__struct_config__.tag
            raise TaskError(f"{path}: gates.{gate} cannot be judged: a task of kind {kind} does not measure it")


def _with_files(path: Path, task: KnowledgeTask) -> KnowledgeTask:
    """The task with its off-topic questions, and the absolute path of its knowledge; raises TaskError."""
    questions = task.off_topic
    if isinstance(questions, str):
        place = path.parent / questions
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{place}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        questions = tuple(line.strip() for line in lines)
    questions = tuple(question for question in questions if question.strip())
    if len(questions) < 2:
        raise TaskError(f"{path}: off_topic has {len(questions)} questions; an interval needs at least 2")
    folder = str((path.parent / task.knowledge).resolve())
    return msgspec.structs.replace(task, off_topic=questions, knowledge=folder)


def _read_items(path: Path, kind: type[Item]) -> list[Item]:
    """The items in a JSON Lines file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # as `pruning.data.documents` splits the same file
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                items.append(msgspec.json.decode(line, type=kind))
            except msgspec.DecodeError as error:
                raise TaskError(f"{path}, line {number}: {error}") from None
    return items


def _scored_items(place: Path, task: Any, given: Sequence[Item]) -> tuple[Item, ...]:
    """The items to score, each with an id; raises TaskError for an empty text, a repeated id, or too few items."""
    seen: set[str] = set()
    items = [_completed(item, number) for number, item in enumerate(given, 1)]
    for number, item in enumerate(items, 1):
        where = f"{place}: item {number} (id {item.id!r})"
        empty = [name for name, text in item.texts.items() if not text.strip()]
        if empty:
            raise TaskError(f"{where}: {empty[0]} is empty")
        if item.id in seen:
            raise TaskError(f"{where}: an earlier item has the same id; ids must differ")
        if isinstance(item, Question) and item.answer >= len(item.options):
            raise TaskError(f"{where}: answer is {item.answer}, but the last option is {len(item.options) - 1}, from 0")
        seen.add(item.id)
    only = any(item.held_out for item in items)
    kept = [item for item in items if item.held_out or not only]
    kept = [item for item in kept if _bucket(item) in task.buckets]
    if len(kept) < 2:
        raise TaskError(f"{place}: {len(kept)} of {len(items)} items left to score; an interval needs at least 2")
    if isinstance(task, PairsTask | KnowledgeTask):
        _check_distractors(place, task.choices, [item for item in kept if isinstance(item, Pair)])
    return tuple(kept)


def _completed(item: Item, number: int) -> Item:
    """`item` with an id, and with the first of its `answers` as the reference where it names none."""
    item = msgspec.structs.replace(item, id=item.id or str(number))
    if isinstance(item, Pair) and not item.answer and item.answers:
        return msgspec.structs.replace(item, answer=item.answers[0])
    return item


def _check_distractors(place: Path, choices: int, items: Sequence[Pair]) -> None:
    """Raise TaskError if an item has fewer distractors than `choices` - 1: answers of others that are not right."""
    known = {item.answer for item in items}
    for item in items:
        if choices > (count := len(known - set(item.right)) + 1):
            raise TaskError(
                f"{place}: choices = {choices}, but the items have only {count} different answers for item {item.id!r}"
            )


def _bucket(item: Item) -> int:
    """The bucket of an item, 0 to 9: the same as when its line is read as text for training."""
    return Document(item.title or next(iter(item.texts.values())), "").bucket
