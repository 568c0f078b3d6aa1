"""What a model is judged by: a task is one frozen value, read from TOML, its items in it or in a file of JSON lines.

A mistake is answered with the file, the line or the path in it, and what is allowed, before any model is loaded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pruning.data.documents import Document
from pruning.errors import TaskError
from pruning.recipe.bounds import Bucket, Count, Gates
from pruning.recipe.recipe import ALL_BUCKETS, read_as

FIELD = "kind"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be judged by; other fields of its line are ignored."""

    id: str = ""
    """Left out, its number in the file, from 1."""
    held_out: bool = False
    """Kept out of every training; where any item of a task is held out, only those are scored."""
    title: str | None = None
    """What decides its bucket; left out, its first text."""

    @property
    def texts(self) -> dict[str, str]:
        """What must not be empty, by name; the first is what the item is known by."""
        raise NotImplementedError


class Pair(Item, frozen=True):
    """A question and the answer that is wanted."""

    question: str
    answer: str

    @property
    def texts(self) -> dict[str, str]:
        """Question and answer."""
        return {"question": self.question, "answer": self.answer}


class Question(Item, frozen=True):
    """A question, the options, and the index of the right one, from 0."""

    question: str
    options: Annotated[tuple[str, ...], Meta(min_length=2)]
    answer: Annotated[int, Meta(ge=0)]

    @property
    def texts(self) -> dict[str, str]:
        """Question and options."""
        return {"question": self.question} | {f"options[{n}]": text for n, text in enumerate(self.options)}


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Transcript(Item, frozen=True):
    """A conversation, of which the assistant's turns are scored."""

    messages: tuple[Message, ...]

    @property
    def texts(self) -> dict[str, str]:
        """What the assistant says."""
        said = [message.content for message in self.messages if message.role == "assistant"]
        return {f"assistant turn {n + 1}": text for n, text in enumerate(said)} or {"assistant turn": ""}


class Prompt(Item, frozen=True):
    """Something that users ask, without an answer."""

    prompt: str

    @property
    def texts(self) -> dict[str, str]:
        """The prompt."""
        return {"prompt": self.prompt}


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A turn that stands before each prompt, as in a skill."""

    question: str
    answer: str


class _Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field=FIELD):
    """What every kind of task is told."""

    name: Annotated[str, Meta(pattern=r"^[\w.-]+$")]
    seed: int = 0
    """Of the distractors and of the bootstrap."""
    gates: Gates = Gates()

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the scores, the items of a file included; gates judge them and change none."""
        scored = msgspec.structs.replace(self, gates=Gates())
        return hashlib.sha256(msgspec.json.encode(scored, order="deterministic")).hexdigest()


class _Prompting(_Task, frozen=True, kw_only=True):
    """What is told where there are prompts."""

    chat: bool = False
    """Whether prompts are written with the model's own chat template."""
    system: str = ""
    examples: tuple[Example, ...] = ()
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Which tenths of the items, by the hash of the question, as for texts."""


class Pairs(_Prompting, frozen=True, tag="pairs"):
    """Answer NLL; a choice among answers by pointwise mutual information; exact and contained greedy answers."""

    items: str | tuple[Pair, ...]
    answer_tokens: Count = 64
    """Tokens of an answer that are scored; the rest is cut."""
    choices: Annotated[int, Meta(ge=0, le=16)] = 4
    """The right answer among `choices` - 1 drawn from the other items; 0 leaves it out."""
    greedy: Annotated[int, Meta(ge=0)] = 0
    """Tokens to generate for exact and contained answers; 0 leaves them out."""


class Choice(_Prompting, frozen=True, tag="choice"):
    """Accuracy of multiple choice, and NLL of the right option."""

    items: str | tuple[Question, ...]
    by: Literal["pmi", "mean", "sum"] = "pmi"
    """log p(option | question) - log p(option), log p(option | question) for each token, or in all."""


class Chat(_Task, frozen=True, tag="chat"):
    """NLL of the assistant's turns in transcripts, written with the model's own chat template."""

    items: str | tuple[Transcript, ...]
    buckets: tuple[Bucket, ...] = ALL_BUCKETS


class Text(_Task, frozen=True, tag="text"):
    """Perplexity of plain text; each non-overlapping window is an item."""

    source: str
    """As `source` in a recipe."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    tokens: Annotated[int, Meta(ge=2)] = 8192
    window: Annotated[int, Meta(ge=2)] = 512


class Behaviour(_Prompting, frozen=True, tag="behaviour"):
    """How far answers move from the base's, without labels: KL divergence, agreement of greedy replies, flips."""

    items: str | tuple[Prompt, ...]
    greedy: Count = 32
    """Tokens of each greedy reply."""


class Harness(_Task, frozen=True, tag="lm-eval"):
    """A task of lm-eval (the extra `lm-eval`): its prompts and metrics, each document an item."""

    task: str
    """lm-eval's name for it."""
    folder: str = ""
    """Where its YAML and data files lie, relative to this file; without it, lm-eval's own tasks."""
    limit: Annotated[int, Meta(ge=2)] | None = None
    """At most so many documents, the first."""
    shots: Annotated[int, Meta(ge=0)] | None = None
    """Examples before each document; without it, as many as lm-eval's task says."""
    chat: bool = False
    """Whether prompts are written with the model's own chat template."""
    greedy: Count = 256
    """Tokens of a reply at most, where the task generates."""
    code: bool = False
    """Whether Python that lies beside the YAML file may be run."""


Task = Pairs | Choice | Chat | Text | Behaviour | Harness
ITEMS: dict[type[Task], type[Item]] = {Pairs: Pair, Choice: Question, Chat: Transcript, Behaviour: Prompt}
"""The items of each kind that has any."""
ACCURACY = (Pairs, Choice, Harness)


def read(path: Path) -> Task:
    """The task in the TOML file `path` with its items; raises TaskError with the place and what is allowed there."""
    task: Task = read_as(Task, path, TaskError)
    _check_gates(path, task)
    if isinstance(task, Harness):
        folder = str((path.parent / task.folder).resolve()) if task.folder else ""
        return msgspec.structs.replace(task, folder=folder)
    if isinstance(task, Text):
        return task
    place = path
    if isinstance(task.items, str):
        place = path.parent / task.items
        items: Sequence[Item] = _lines(place, ITEMS[type(task)])
    else:
        items = task.items
    return msgspec.structs.replace(task, items=_chosen(place, task, items))


def unmeasured(task: Task) -> set[str]:
    """The gates on figures that this kind of task does not give."""
    accuracy = isinstance(task, ACCURACY) and getattr(task, "choices", 2) > 0
    lacks = {
        "max_nll_ratio": isinstance(task, Behaviour),
        "max_accuracy_drop": not accuracy,
        "max_kl": not isinstance(task, Behaviour),
    }
    return {gate for gate, lacking in lacks.items() if lacking}


def held_to(task: Task, gates: Gates) -> Task:
    """`task` with those of `gates` that it measures beside its own; the stricter of two limits counts."""
    limits = {}
    for gate in gates.__struct_fields__:
        given = [getattr(task.gates, gate), None if gate in unmeasured(task) else getattr(gates, gate)]
        limits[gate] = min((limit for limit in given if limit is not None), default=None)
    held: Task = msgspec.structs.replace(task, gates=Gates(**limits))
    return held


def _check_gates(path: Path, task: Task) -> None:
    """Refuse a gate on a figure that this kind of task does not give."""
    for gate in sorted(unmeasured(task)):
        if getattr(task.gates, gate) is not None:
            kind = type(task).__struct_config__.tag
            raise TaskError(f"{path}: gates.{gate} cannot be judged: a task of this kind ({kind}) does not measure it")


def _lines(path: Path, kind: type[Item]) -> list[Item]:
    """The items in a file of JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # as `pruning.data.documents` reads them
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


def _chosen(place: Path, task: Any, given: Sequence[Item]) -> tuple[Item, ...]:
    """The items that are scored, each with an id; raises TaskError for an empty text, an id twice, or too few."""
    seen: set[str] = set()
    items = [msgspec.structs.replace(item, id=item.id or str(number)) for number, item in enumerate(given, 1)]
    for number, item in enumerate(items, 1):
        empty = [name for name, text in item.texts.items() if not text.strip()]
        if empty:
            raise TaskError(f"{place}: item {number} (id {item.id!r}): {empty[0]} is empty")
        if item.id in seen:
            raise TaskError(f"{place}: item {number}: the id {item.id!r} stands there twice; ids must differ")
        if isinstance(item, Question) and item.answer >= len(item.options):
            raise TaskError(f"{place}: item {number} (id {item.id!r}): answer is {item.answer}, the first option is 0")
        seen.add(item.id)
    only = any(item.held_out for item in items)
    kept = [item for item in items if item.held_out or not only]
    kept = [item for item in kept if Document(item.title or next(iter(item.texts.values())), "").bucket in task.buckets]
    if len(kept) < 2:
        raise TaskError(f"{place}: {len(kept)} items of {len(items)} are left to score; an interval needs 2 or more")
    if isinstance(task, Pairs) and task.choices > (count := len({item.texts["answer"] for item in kept})):
        raise TaskError(f"{place}: choices = {task.choices} needs as many different answers, and there are {count}")
    return tuple(kept)
