"""Text in, seeded token ids [sequences, tokens] out, with the digest that says which ids they were.

Reads plain text (paragraphs), JSON lines ("text", "messages", or "question" and "answer"), a JSON object of
title -> text, and a column of a dataset. A text belongs to the bucket `int(sha1(title), 16) % 10`, so calibration and
evaluation can be kept apart for good; without a title it is known by its question, by what the assistant first says in
its messages, or by itself. A line that is marked "held_out" is for evaluation on a task, and is never read here.
"""

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from pruning.data import hub
from pruning.errors import DataError, ModelRefused, refusing
from pruning.model.settings import settings_of
from pruning.recipe import sources
from pruning.recipe.sources import locate
from server.artifact.checkpoint.lineage import Data
from server.artifact.checkpoint.reader import Artifact
from server.text.extensions import extend, special_tokens

BODY_FIELDS = ("text", "extract", "content")
DAY = datetime(2026, 1, 1)
"""What templates that write the date are told: ids that changed at midnight would begin a killed run anew."""


class Text(NamedTuple):
    """One text and the title that it is known by, which may be the text itself."""

    title: str
    body: str

    @property
    def bucket(self) -> int:
        """Which tenth of all texts it belongs to, 0 to 9."""
        return int(hashlib.sha1(self.title.encode()).hexdigest(), 16) % 10


class Encoder:
    """Encodes texts with the tokenizer and chat template that lie in an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self._tokenizer = tokenizer_of(artifact)
        self._folder = artifact.path
        self._words = artifact.config.get("vocab_size")
        end = artifact.config.get("eos_token_id")
        self.end: list[int] = (end[:1] if isinstance(end, list) else [end]) if end is not None else []
        self._refuse_unknown(self.end, "config.json's eos_token_id is")

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and the end-of-sequence id."""
        return self.ids(text) + self.end

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._refuse_unknown(ids, "tokenizer.json, which may be another model's, gives the id")
        return ids

    def _refuse_unknown(self, ids: list[int], what: str) -> None:
        """Raise ModelRefused where one of `ids` has no row in the model's embeddings."""
        if isinstance(self._words, int) and ids and not (min(ids) >= 0 and max(ids) < self._words):
            wrong = next(id for id in ids if not 0 <= id < self._words)
            raise ModelRefused(f"{what} {wrong}, but the model has {self._words} tokens (vocab_size in config.json)")

    @property
    def start(self) -> list[int]:
        """The id that the tokenizer itself puts before a text, or none."""
        return list(self._tokenizer.encode("").ids[:1])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: list[dict[str, str]], reply: bool = False) -> str:
        """`messages` as the model's chat template writes them, and what comes before a reply if one is wanted.

        Raises DataError where it has none or refuses them.
        """
        settings = settings_of(self._folder / "tokenizer_config.json")
        own = self._folder / "chat_template.jinja"
        template = own.read_text(encoding="utf-8") if own.exists() else settings.get("chat_template")
        if not template:
            raise DataError("the data holds messages, but the model has no chat template to write them with")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        extend(environment)
        environment.globals["strftime_now"] = DAY.strftime
        try:
            given = special_tokens(settings) | {"messages": messages, "add_generation_prompt": reply}
            return environment.from_string(template).render(given)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DataError(f"the model's chat template fails on the messages in the data: {error}") from None


def tokenizer_of(artifact: Artifact) -> Tokenizer:
    """The tokenizer that lies in `artifact`; raises ModelRefused where it is damaged."""
    file = artifact.path / "tokenizer.json"
    with refusing(f"{file} cannot be read"):
        return Tokenizer.from_file(str(file))


class Draw(NamedTuple):
    """Which ids to draw: `sequences` x `tokens`, from the texts of `source` in `buckets`, in an order by `seed`."""

    source: str
    buckets: Collection[int]
    sequences: int
    tokens: int
    seed: int = 0


def draw(wanted: Draw, encoder: Encoder) -> tuple[Tensor, Data]:
    """Shuffle the texts, join them with end-of-sequence ids and cut ids [sequences, tokens].

    Raises DataError, with the numbers, where the text is empty or too short.
    """
    source, buckets, sequences, tokens, seed = wanted
    texts = [text for text in texts_of(source, encoder.chat) if text.bucket in buckets]
    random.Random(seed).shuffle(texts)
    ids: list[int] = []
    for text in texts:
        if len(ids) >= sequences * tokens:
            break
        ids += encoder.encode(text.body)
    if len(ids) < sequences * tokens:
        raise DataError(
            f"{source} gives {len(ids)} tokens in {len(texts)} texts of the buckets {sorted(buckets)}, "
            f"but {sequences} x {tokens} = {sequences * tokens} are needed"
        )
    packed = torch.tensor(ids[: sequences * tokens]).view(sequences, tokens)
    return packed, data_record(source, packed, seed)


def data_record(source: str, ids: Tensor, seed: int) -> Data:
    """What the lineage says of `ids` [sequences, tokens]."""
    return Data(source=source, digest=digest_of(ids), sequences=len(ids), tokens=ids.shape[1], seed=seed)


def digest_of(ids: Tensor) -> str:
    """SHA-256 of ids as little-endian int64."""
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()


def texts_of(source: str, chat: Callable[[list[dict[str, str]]], str]) -> list[Text]:
    """Every text of what a recipe calls `source`: a file, or a column of a dataset."""
    if not source.startswith(hub.PREFIX):
        return read(locate(source), chat)
    values = [value for value in hub.column(source) if value]
    if wrong := next((value for value in values if not isinstance(value, str | list)), None):
        raise DataError(f"{source} holds {type(wrong).__name__}, neither texts nor messages of chats: {wrong!r:.60}")
    bodies = [value if isinstance(value, str) else chat(value) for value in values]
    return [Text(body, body) for body in bodies if body.strip()]


def digest_of_source(source: str) -> str:
    """SHA-256 of what a recipe calls `source`: of its file, or of a dataset's values as JSON."""
    if not source.startswith(hub.PREFIX):
        return sources.digest_of(locate(source))
    return hashlib.sha256(json.dumps(hub.column(source), default=str).encode()).hexdigest()


def read(path: Path, chat: Callable[[list[dict[str, str]]], str]) -> list[Text]:
    """Every text in the file `path` that is not blank; raises DataError where the file is in no known form."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe or a device, which cannot be read twice: write its text to a file first")
    try:
        content = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of byte order
        texts = list(_READERS.get(path.suffix.lower(), _paragraphs)(content, chat))
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error}){_line_of(error)}"
        raise DataError(f"{path} is in no known form ({reason}: see the README for the three that are") from None
    except (OSError, ValueError, RecursionError) as error:  # of UTF-8, of JSON, of half a character
        raise DataError(f"{path} cannot be read as {path.suffix or 'text'}: {error}{_line_of(error)}") from None
    return [text for text in texts if text.body.strip()]


def _line_of(error: BaseException) -> str:
    """Which line of a file an error is about, where that was noted."""
    return "".join(f", {note}" for note in getattr(error, "__notes__", ()))


def _paragraphs(content: str, _: object) -> Iterator[Text]:
    """One text for each run of lines without a blank one."""
    for paragraph in content.split("\n\n"):
        yield Text(paragraph, paragraph)


def _json_lines(content: str, chat: Callable[[list[dict[str, str]]], str]) -> Iterator[Text]:
    """One text for each line that is not held out, from its "text", its "messages", or its question and answer."""
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: JSON may hold U+2028 as it is
        try:
            value: dict[str, Any] = json.loads(line) if line.strip() else {"held_out": True}
            if not value.get("held_out"):
                yield _known(_json_text(value, chat))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            error.add_note(f"in line {number}")
            raise


def _json_text(value: dict[str, Any], chat: Callable[[list[dict[str, str]]], str]) -> Text:
    """The text in one line's record."""
    if "question" in value:
        messages = [{"role": "user", "content": _string(value["question"])}]
        body = chat([*messages, {"role": "assistant", "content": _string(value["answer"])}])
    elif "messages" in value:
        if not isinstance(value["messages"], list):
            raise TypeError(f"messages are {type(value['messages']).__name__}, not a list")
        body = chat(value["messages"])
    else:
        body = _string(value["text"])
    return Text(str(value.get("title") or value.get("question") or _first_said(value) or body), body)


def _first_said(value: Mapping[str, Any]) -> str | None:
    """By what a conversation is known, as a task of conversations knows it: templates write it with the day's date."""
    said = (message for message in value.get("messages", ()) if message["role"] == "assistant")
    return next((str(message["content"]) for message in said), None)


def _string(value: Any) -> str:
    """`value`, which must be a text: null would be calibrated on as the word None."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text was expected")
    return value


def _known(text: Text) -> Text:
    """`text`, where all its characters are whole; else raises UnicodeEncodeError."""
    f"{text.title}{text.body}".encode()
    return text


def _json_object(content: str, _: object) -> Iterator[Text]:
    """One text for each title."""
    for title, value in json.loads(content, object_pairs_hook=_once).items():
        yield _known(Text(title, value if isinstance(value, str) else _body(value)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError where a name stands twice, of which Python would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return values


def _body(value: Mapping[str, Any]) -> str:
    """The text in an article's record."""
    field = next((field for field in BODY_FIELDS if field in value), None)
    if field is None:
        raise KeyError(f"a record has none of {', '.join(BODY_FIELDS)}")
    return _string(value[field])


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_object}
