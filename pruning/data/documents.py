"""Reads the documents of a source: plain text, JSON lines, JSON, any of them gzipped, or a column of a dataset.

A document belongs to the bucket `int(sha1(title), 16) % 10`, so that calibration and evaluation stay apart. Without a
title it goes by its question, else by what the assistant first says in it, else by its text. JSON lines with
`"held_out": true` are for evaluation on a task and are never read here.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pruning.data import hub
from pruning.errors import DataError
from pruning.recipe import sources
from pruning.recipe.sources import locate

BODY_FIELDS = ("text", "extract", "content", "description")
"""Keys under which a record may hold its text; the first that it has counts."""
Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]
"""Writes a conversation as text, as the model's chat template does."""


class Document(NamedTuple):
    """One document of a source."""

    title: str
    """Decides the bucket; may be the text itself."""
    body: str
    """The text; of a conversation, as rendered."""
    messages: Messages | None = None
    """The turns of a conversation; None for plain text."""

    @property
    def bucket(self) -> int:
        """The bucket of the document, 0 to 9, from the hash of its title: about a tenth of all documents each."""
        return int(hashlib.sha1(self.title.encode()).hexdigest(), 16) % 10


def documents_of(source: str, render: Render) -> list[Document]:
    """Every document that is not blank in what a recipe calls `source`, a file or a column of a dataset.

    Raises SourceMissing where there is no such file, DataError where it cannot be read.
    """
    if not source.startswith(hub.PREFIX):
        return read(locate(source), render)
    values = [value for value in hub.column(source) if value]
    if wrong := next((value for value in values if not isinstance(value, str | list)), None):
        raise DataError(f"{source} holds {type(wrong).__name__}, neither texts nor messages of chats: {wrong!r:.60}")
    bodies = [value if isinstance(value, str) else render(value) for value in values]
    return [
        Document(body, body, None if isinstance(value, str) else value)
        for value, body in zip(values, bodies, strict=True)
        if body.strip()
    ]


def digest_of_source(source: str) -> str:
    """SHA-256 of a source's file or directory, or of a dataset's values as JSON."""
    if not source.startswith(hub.PREFIX):
        return sources.digest_of(locate(source))
    return hashlib.sha256(json.dumps(hub.column(source), default=str).encode()).hexdigest()


def read(path: Path, render: Render) -> list[Document]:
    """Every document in `path` that is not blank; raises DataError where the file has none of the known forms."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe or a device, which cannot be read twice: write its text to a file first")
    try:
        packed = path.suffix.lower() == ".gz"
        form = (path.with_suffix("") if packed else path).suffix.lower()
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        documents = list(_READERS.get(form, _paragraphs)(text, render))
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error}){_line_of(error)}"
        raise DataError(f"{path} is in no known form ({reason}: the docs' page `Prune` lists them") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:  # of gzip, UTF-8, JSON, a surrogate
        raise DataError(f"{path} cannot be read as {path.suffix or 'text'}: {error}{_line_of(error)}") from None
    return [document for document in documents if document.body.strip()]


def _line_of(error: BaseException) -> str:
    """The note that says which line the error is in, if there is one."""
    return "".join(f", {note}" for note in getattr(error, "__notes__", ()))


def _paragraphs(content: str, _: object) -> Iterator[Document]:
    """One document for each run of lines without a blank one."""
    for paragraph in content.split("\n\n"):
        yield Document(paragraph, paragraph)


def _json_lines(content: str, render: Render) -> Iterator[Document]:
    """One document for each line that is not held out: its "text", its "messages", or its question and answer."""
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: JSON may hold U+2028 as it is
        try:
            value: dict[str, Any] = json.loads(line) if line.strip() else {"held_out": True}
            if not value.get("held_out"):
                yield _encodable(_document(value, render))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            error.add_note(f"in line {number}")
            raise


def _document(value: dict[str, Any], render: Render) -> Document:
    """The document in one line's record."""
    messages: Messages | None = None
    if "question" in value:
        answer = value["answers"][0] if "answers" in value and not value.get("answer") else value["answer"]
        turns = (("user", value["question"]), ("assistant", answer))
        messages = [{"role": role, "content": _string(content)} for role, content in turns]
    elif "messages" in value:
        messages = value["messages"]
        if not isinstance(messages, list):
            raise TypeError(f"messages are {type(messages).__name__}, not a list")
    body = _body(value) if messages is None else render(messages)
    named = value.get("title") or value.get("subject") or value.get("question") or _first_said(value)
    return Document(str(named or body), body, messages)


def _first_said(value: Mapping[str, Any]) -> str | None:
    """The assistant's first turn, which titles a conversation here and in chat tasks, as it holds no date; or None."""
    said = (message for message in value.get("messages", ()) if message["role"] == "assistant")
    return next((str(message["content"]) for message in said), None)


def _string(value: Any) -> str:
    """`value`; raises TypeError unless it is a text, as null would be read as the word None."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text was expected")
    return value


def _encodable(document: Document) -> Document:
    """`document`; raises UnicodeEncodeError where it holds a lone surrogate."""
    f"{document.title}{document.body}".encode()
    return document


def _json(content: str, render: Render) -> Iterator[Document]:
    """One document for each title of an object, or for each record of a list, as in JSON lines."""
    values = json.loads(content, object_pairs_hook=_unique_names)
    if isinstance(values, list):
        for value in values:
            if isinstance(value, str):
                yield _encodable(Document(value, value))
            elif not value.get("held_out"):
                yield _encodable(_document(value, render))
        return
    for title, value in values.items():
        yield _encodable(Document(title, value if isinstance(value, str) else _body(value)))


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a repeated name, of which Python would silently keep the last value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return values


def _body(value: Mapping[str, Any]) -> str:
    """The text of an article; raises KeyError where it has none."""
    field = next((field for field in BODY_FIELDS if field in value), None)
    if field is None:
        raise KeyError(f"a record has none of {', '.join(BODY_FIELDS)}")
    return _string(value[field])


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json}
