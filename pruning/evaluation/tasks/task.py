"""The tasks that a model is judged by, as frozen values; the docstring of each field documents its option in TOML."""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Bucket, Count, Gates
from pruning.recipe.texts import ALL_BUCKETS

FIELD = "kind"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One scored item; unknown keys of its JSON line are ignored, so one file can serve training and evaluation."""

    id: str = ""
    """Unique name in the report; by default the item's number in the file, from 1."""
    held_out: bool = False
    """Keep the item out of all training and calibration. If any item is held out, only held-out items are scored."""
    title: str | None = None
    """Text whose hash decides the item's bucket; by default its question, prompt or first assistant turn."""

    @property
    def texts(self) -> dict[str, str]:
        """The texts that must not be empty, by field; the first one identifies the item."""
        raise NotImplementedError


class Pair(Item, frozen=True):
    """A question and its reference answer, or several right ones."""

    question: str
    """What the user asks."""
    answer: str = ""
    """The reference answer, whose likelihood is scored; by default the first of `answers`."""
    answers: tuple[str, ...] = ()
    """Other right answers: greedy replies may equal or contain any of them, and none is a distractor."""

    @property
    def right(self) -> tuple[str, ...]:
        """Every right answer, the reference first."""
        return tuple(dict.fromkeys((self.answer, *self.answers)))

    @property
    def texts(self) -> dict[str, str]:
        """Question and right answers."""
        others = {f"answers[{number}]": text for number, text in enumerate(self.answers)}
        return {"question": self.question, "answer": self.answer} | others


class Asked(Pair, frozen=True):
    """A question with its reference answer, which some passage of a knowledge has."""

    phrase: str = ""
    """The answer's key phrase, which a right reply contains; by default its rarest three words in a row."""
    url: str = ""
    """URL of the right passages, with or without anchor; by default those whose text the answer has, or has it."""


class Question(Item, frozen=True):
    """A multiple-choice question."""

    question: str
    """What the user asks."""
    options: Annotated[tuple[str, ...], Meta(min_length=2)]
    """The answers to choose from."""
    answer: Annotated[int, Meta(ge=0)]
    """Index of the right option, from 0."""

    @property
    def texts(self) -> dict[str, str]:
        """Question and options."""
        return {"question": self.question} | {f"options[{n}]": text for n, text in enumerate(self.options)}


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """The text of the turn."""


class Transcript(Item, frozen=True):
    """A conversation whose assistant turns are scored."""

    messages: tuple[Message, ...]
    """The turns in order; at least one is the assistant's."""

    @property
    def texts(self) -> dict[str, str]:
        """The assistant's turns."""
        said = [message.content for message in self.messages if message.role == "assistant"]
        return {f"assistant turn {n + 1}": text for n, text in enumerate(said)} or {"assistant turn": ""}


class Prompt(Item, frozen=True):
    """A user's prompt without a reference answer."""

    prompt: str
    """What the user asks."""

    @property
    def texts(self) -> dict[str, str]:
        """The prompt."""
        return {"prompt": self.prompt}


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A few-shot turn before each prompt, as in a skill."""

    question: str
    """What the user asks."""
    answer: str
    """What the assistant replies."""


class _Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field=FIELD):
    """The options of every kind of task."""

    name: Annotated[str, Meta(pattern=r"^[\w.-]+$")]
    """Name of the task and of its report's files: letters, digits, `_`, `.` and `-`."""
    seed: int = 0
    """Seed of the bootstrap, the distractors, the order of texts and lm-eval's few-shot examples."""
    gates: Gates = Gates()
    """Limits that fail the pruned model, judged by the worse bound of a 95 % interval; none by default."""

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the scores, items of a file included; gates only judge scores and are left out."""
        scored = msgspec.structs.replace(self, gates=Gates())
        return hashlib.sha256(msgspec.json.encode(scored, order="deterministic")).hexdigest()


class _PromptTask(_Task, frozen=True, kw_only=True):
    """The options of tasks that prompt the model."""

    chat: bool = False
    """Format prompts with the model's own chat template; by default as plain text, which base models need."""
    system: str = ""
    """System prompt before each prompt; none by default."""
    examples: tuple[Example, ...] = ()
    """Few-shot turns after the system prompt; none by default."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Buckets of items to score, 0 to 9: each is about a tenth of the items, by hash as for texts. All by default."""


class PairsTask(_PromptTask, frozen=True, tag="pairs"):
    """NLL of reference answers, multiple choice by mutual information, and exact or contained greedy answers."""

    items: str | tuple[Pair, ...]
    """The items, or a JSON Lines file relative to this file."""
    answer_tokens: Count = 64
    """Leading tokens of each answer that are scored; the limit keeps long answers from dominating the run time."""
    choices: Annotated[int, Meta(ge=0, le=16)] = 4
    """Options of the multiple choice: the answer and `choices` - 1 distractors from other items; 0 leaves it out."""
    greedy: Annotated[int, Meta(ge=0)] = 0
    """Tokens generated per answer for `exact` and `contained`; 0, the default, saves the time to generate."""


class ChoiceTask(_PromptTask, frozen=True, tag="choice"):
    """Accuracy of multiple choice, and NLL of the right option."""

    items: str | tuple[Question, ...]
    """The items, or a JSON Lines file relative to this file."""
    by: Literal["pmi", "mean", "sum"] = "pmi"
    """Score of an option: `sum` is log p(option | question), `mean` that per token, and `pmi` that minus log p(option).

    The default discounts options that are likely after any question.
    """


class ChatTask(_Task, frozen=True, tag="chat"):
    """NLL of the assistant's turns in transcripts, formatted with the model's own chat template."""

    items: str | tuple[Transcript, ...]
    """The items, or a JSON Lines file relative to this file."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Buckets of items to score, 0 to 9: each is about a tenth of the items, by hash as for texts. All by default."""


class TextTask(_Task, frozen=True, tag="text"):
    """Perplexity of plain text; each non-overlapping window is an item."""

    source: str
    """The text, named as `source` in a recipe."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Buckets of texts to draw from, 0 to 9; all by default. Leave out the buckets of the calibration."""
    tokens: Annotated[int, Meta(ge=2)] = 8192
    """Tokens in all, rounded down to whole windows; at least two windows."""
    window: Annotated[int, Meta(ge=2)] = 512
    """Tokens of a window; perplexities compare only at equal windows."""
    contiguous: bool = False
    """Keep the texts of the source in their order, as one text with empty lines between them; by default they are
    shuffled and end with the end-of-sequence token, so a paragraph does not help to predict the next."""


class BehaviourTask(_PromptTask, frozen=True, tag="behaviour"):
    """Drift from the base without labels: KL divergence, flipped tokens and agreement of greedy replies."""

    items: str | tuple[Prompt, ...]
    """The items, or a JSON Lines file relative to this file."""
    greedy: Count = 32
    """Tokens of each greedy reply, on which both models are compared."""


class KnowledgeTask(_PromptTask, frozen=True, tag="knowledge"):
    """Retrieval, refusals, support by what is cited, and right answers with and without a knowledge."""

    items: str | tuple[Asked, ...]
    """The questions on the topic, or a JSON Lines file relative to this file."""
    knowledge: str
    """Directory of `secateur knowledge build`, relative to this file."""
    off_topic: str | Annotated[tuple[str, ...], Meta(min_length=2)]
    """Questions to refuse, or a file with one a line relative to this file."""
    answered: Annotated[int, Meta(ge=2)] | None = None
    """Questions on the topic that models answer, drawn by `seed`; all are searched. All by default."""
    knowledge_tokens: Annotated[int, Meta(ge=64, le=100_000)] = 512
    """Tokens of passages before a question, as in a skill."""
    answer_tokens: Count = 64
    """Leading tokens of each answer that are scored."""
    choices: Annotated[int, Meta(ge=2, le=16)] = 4
    """Options of the multiple choice by PMI: the answer and `choices` - 1 distractors from other items."""
    greedy: Count = 96
    """Tokens of each greedy reply."""


class HarnessTask(_Task, frozen=True, tag="lm-eval"):
    """A task of EleutherAI's lm-eval (the extra `lm-eval`) with its prompts and metrics; each document is an item."""

    task: str
    """lm-eval's name of the task; a group is refused."""
    folder: str = ""
    """Folder of the task's YAML and data files, relative to this file; by default lm-eval's own tasks."""
    limit: Annotated[int, Meta(ge=2)] | None = None
    """Score only the first `limit` documents; all by default."""
    shots: Annotated[int, Meta(ge=0)] | None = None
    """Few-shot examples before each document; by default the number that lm-eval's task sets."""
    chat: bool = False
    """Format prompts with the model's own chat template; off by default, as in lm-eval."""
    greedy: Count = 256
    """Upper limit of generated tokens; a lower limit of lm-eval's task holds."""
    code: bool = False
    """Allow Python code in the folder to run; refused by default, since lm-eval imports it."""


Task = PairsTask | ChoiceTask | ChatTask | TextTask | BehaviourTask | KnowledgeTask | HarnessTask
