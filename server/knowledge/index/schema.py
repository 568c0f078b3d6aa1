"""The tables of the index, and their writing: the same passages give the same bytes.

Passages that one group of visitors may see, in one language, are a partition: they have consecutive ids and a full-text
table of their own, so that a search touches nothing of a partition that its caller may not see, nor counts its words.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
from msgspec import Struct

from server.knowledge.passages import Passage

TOKENIZERS = {"en": "porter unicode61 remove_diacritics 2"}
"""FTS5's tokenizer by language: stems for English."""
TRIGRAMS = "trigram"
WITHOUT_SPACES = ("ja", "ko", "lo", "my", "th", "zh")
"""Languages that do not part words by blanks, or glue particles to them."""
WORDS = "unicode61 remove_diacritics 2"
TABLES = (
    "CREATE TABLE partitions (id INTEGER PRIMARY KEY, tokenizer TEXT NOT NULL, groups TEXT NOT NULL,"
    " first INTEGER NOT NULL, last INTEGER NOT NULL, first_question INTEGER NOT NULL, last_question INTEGER NOT NULL)",
    "CREATE TABLE documents (id INTEGER PRIMARY KEY, name TEXT NOT NULL, url TEXT NOT NULL, title TEXT NOT NULL,"
    " digest TEXT NOT NULL, passages INTEGER NOT NULL)",
    "CREATE TABLE passages (id INTEGER PRIMARY KEY, document INTEGER NOT NULL, url TEXT NOT NULL,"
    " headings TEXT NOT NULL, question TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE questions (id INTEGER PRIMARY KEY, passage INTEGER NOT NULL)",
)


class Entry(Struct, frozen=True):
    """A document to index."""

    name: str
    """Its path or URL, unique within the knowledge."""
    url: str
    title: str
    digest: str
    """SHA-256 of its content."""
    language: str
    groups: tuple[str, ...]
    """Who may see it, sorted; empty: everyone."""
    passages: tuple[Passage, ...]


class Words(Struct, frozen=True):
    """Where a partition begins, and how its text is parted into words."""

    number: int
    tokenizer: str
    first: int
    first_question: int


class Row(Struct, frozen=True):
    """A passage in the order of the index."""

    entry: Entry
    passage: Passage


def tokenizer(language: str) -> str:
    """FTS5's tokenizer for a language code such as `en` or `pt-BR`."""
    short = language.lower().partition("-")[0]
    return TRIGRAMS if short in WITHOUT_SPACES else TOKENIZERS.get(short, WORDS)


def ordered(entries: Iterable[Entry]) -> list[Row]:
    """All passages, by partition and then in the order of `entries`; the id of a passage is its place, from 1."""
    rows = [Row(entry, passage) for entry in entries for passage in entry.passages]
    return sorted(rows, key=_partition)  # stable


def write(path: Path, entries: Sequence[Entry], rows: Sequence[Row]) -> None:
    """Write the index of `rows`, as `ordered` returns them, to the new file `path`."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("page_size = 4096", "journal_mode = OFF", "synchronous = OFF", "cache_size = -64000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        for table in TABLES:
            connection.execute(table)
        numbers = {id(entry): number for number, entry in enumerate(entries, 1)}
        for entry in entries:
            row = (numbers[id(entry)], entry.name, entry.url, entry.title, entry.digest, len(entry.passages))
            connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", row)
        next_id, next_question = 1, 1
        for number, (key, group) in enumerate(groupby(rows, key=_partition), 1):
            members = list(group)
            words = Words(number, key[0], next_id, next_question)
            asked = _write_partition(connection, words, members, numbers)
            last, last_question = next_id + len(members) - 1, next_question + asked - 1
            partition = (number, *key, next_id, last, next_question, last_question)
            connection.execute("INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?)", partition)
            next_id, next_question = last + 1, last_question + 1
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    finally:
        connection.close()


def _partition(row: Row) -> tuple[str, str]:
    """Tokenizer, and groups as JSON."""
    return tokenizer(row.entry.language), msgspec.json.encode(row.entry.groups).decode()


def _write_partition(
    connection: sqlite3.Connection, words: Words, rows: Sequence[Row], documents: dict[int, int]
) -> int:
    """Write one partition; returns how many stored questions it has. `documents` has the number of each entry."""
    number, first, question = words.number, words.first, words.first_question
    run = connection.execute
    options = f"content = '', tokenize = '{words.tokenizer}'"
    run(f"CREATE VIRTUAL TABLE lexical_{number} USING fts5(title, headings, text, {options})")
    asked = 0
    for place, row in enumerate(rows, first):
        passage = row.passage
        headings = msgspec.json.encode(passage.headings).decode()
        stored = (place, documents[id(row.entry)], passage.url, headings, passage.question, passage.text)
        run("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", stored)
        above = " ".join(dict.fromkeys((*passage.headings, passage.question)))
        run(
            f"INSERT INTO lexical_{number} (rowid, title, headings, text) VALUES (?, ?, ?, ?)",
            (place, passage.title, above, passage.text),
        )
        if passage.question:
            run("INSERT INTO questions VALUES (?, ?)", (question + asked, place))
            asked += 1
    run(f"INSERT INTO lexical_{number} (lexical_{number}) VALUES ('optimize')")
    run(f"CREATE TABLE terms_{number} (term TEXT PRIMARY KEY, documents INTEGER NOT NULL) WITHOUT ROWID")
    run(f"CREATE VIRTUAL TABLE vocabulary USING fts5vocab(lexical_{number}, row)")
    run(f"INSERT INTO terms_{number} SELECT term, doc FROM vocabulary WHERE doc > 1 ORDER BY term")
    run("DROP TABLE vocabulary")
    return asked
