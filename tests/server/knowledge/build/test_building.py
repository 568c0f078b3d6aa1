"""Builds: incremental, reproducible, resumed after a kill, and whole or not at all."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from server import progress
from server.artifact.checkpoint import lineage as record
from server.errors import Busy, ConfigError, KnowledgeError
from server.knowledge import settings
from server.knowledge.build.building import build, journal_of
from server.knowledge.build.journal import Journal
from server.knowledge.search import Knowledge
from tests.server.engine.runners.test_encoder import tiny
from tests.server.knowledge.conftest import Builder

SOURCE = '[[sources]]\npath = "pages"\n'


def digests(folder: Path) -> dict[str, str]:
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    files.pop("lineage.json")
    return files


def test_only_what_changed_is_read_and_what_is_gone_is_gone(tmp_path: Path, pages: Path, built: Builder) -> None:
    first = built()
    assert (first.counts.read, first.changed) == (2, True)
    again = built()
    assert (again.counts.read, again.counts.unchanged, again.changed) == (0, 2, False)
    os.utime(pages / "opening.md", (1, 1))
    (pages / "new.md").write_text("# New\n\nA new page.\n")
    (pages / "returns.md").unlink()
    third = built()
    assert (third.counts.read, third.counts.gone, third.changed) == (2, 1, True)
    titles = [document.title for document in Knowledge.open(tmp_path / "knowledge").documents()]
    assert titles == ["New", "Opening hours"]
    assert not [one for one in Knowledge.open(tmp_path / "knowledge").search("parcel") if "parcel" in one.passage.text]


def test_a_build_in_steps_and_a_build_at_once_give_the_same_bytes(tmp_path: Path, pages: Path, built: Builder) -> None:
    encoder = tiny(tmp_path / "bert")
    head = f'encoder = "{encoder}"'
    (pages / "returns.md").rename(tmp_path / "returns.md")
    built(head=head)
    (tmp_path / "returns.md").rename(pages / "returns.md")
    built(head=head)
    journal_of(settings.read(tmp_path / "knowledge.toml"), tmp_path / "knowledge").unlink()
    built(head=head, output="other")
    assert digests(tmp_path / "knowledge") == digests(tmp_path / "other")
    assert digests(tmp_path / "other").keys() == {"index.sqlite3", "vectors.npy", "knowledge.json"}


def test_vectors_order_passages_and_know_a_stored_question(tmp_path: Path, pages: Path, built: Builder) -> None:
    (pages / "prune.md").write_text("# A b\n\n## How to prune?\n\nc d e.\n")
    built(head=f'encoder = "{tiny(tmp_path / "bert")}"')
    knowledge = Knowledge.open(tmp_path / "knowledge")
    best = knowledge.search("how to prune?")[0]
    assert best.passage.question == "How to prune?"
    assert best.same_question == pytest.approx(1.0, abs=1e-5)
    assert best.cosine is not None
    assert {one.passage.text for one in knowledge.search("how to prune?", 9, ranking="ranks")} >= {"c d e."}
    assert Knowledge.open(tmp_path / "knowledge", words_only=True).search("parcel")[0].cosine is None


def test_the_lineage_names_sources_digests_settings_and_thresholds(tmp_path: Path, pages: Path, built: Builder) -> None:
    built()
    lineage = record.read(tmp_path / "knowledge")
    page = hashlib.sha256((pages / "opening.md").read_bytes()).hexdigest()
    assert lineage.inputs["pages/opening.md"] == page
    assert lineage.recipe == {"name": "shop", "sources": [{"path": "pages"}]}
    assert lineage.thresholds["thresholds"]["measure"] == "coverage"
    assert lineage.thresholds["calibration"]["off_topic"] == 100
    assert {"sqlite", "trafilatura", "pypdf"} <= lineage.versions.keys()


KILLED = """
import sys
from pathlib import Path
from server.knowledge import settings
from server.knowledge.build import building, {module}
original = {module}.{name}
calls = []
def stopping(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        print("there", flush=True)
        import time
        time.sleep(600)
    return original(*arguments, **options)
{patched} = stopping
folder = Path(sys.argv[1])
building.build(settings.read(folder / "knowledge.toml"), folder, folder / "knowledge", shown=False)
"""
PLACES = {
    "reading": ("reading", "_read", 2, "reading._read"),
    "encoding": ("encoding", "unit", 3, "encoding.unit"),
    "writing": ("writing", "_write_files", 1, "writing._write_files"),
    "publishing": ("writing", "publish", 1, "writing.publish"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_build_that_is_killed_resumes_and_leaves_the_old_artifact_meanwhile(
    tmp_path: Path, pages: Path, built: Builder, place: str
) -> None:
    head = f'encoder = "{tiny(tmp_path / "bert")}"'
    built(head=head)
    before = digests(tmp_path / "knowledge")
    for number in range(3):
        (pages / f"more{number}.md").write_text(f"# More {number}\n\nhow to prune {'abc'[number]}\n")
    module, name, call, patched = PLACES[place]
    script = KILLED.format(module=module, name=name, call=call, patched=patched)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert digests(tmp_path / "knowledge") == before
    made = built(head=head)
    assert (made.documents, made.changed) == (5, True)
    assert made.counts.read < 3 if place == "reading" else made.counts.read == 0
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or ".old" in path.name]
    built(head=head, output="fresh")
    assert digests(tmp_path / "knowledge") == digests(tmp_path / "fresh")


def test_a_kill_between_the_two_renames_of_publishing_is_mended(tmp_path: Path, pages: Path, built: Builder) -> None:
    built()
    (tmp_path / "knowledge").rename(tmp_path / ".knowledge.old")
    assert not built().changed
    assert Knowledge.open(tmp_path / "knowledge").search("parcel")


def test_two_builds_at_once_are_one_and_a_refusal(tmp_path: Path, pages: Path, built: Builder) -> None:
    built()
    with (
        Journal(journal_of(settings.read(tmp_path / "knowledge.toml"), tmp_path / "knowledge")),
        pytest.raises(Busy, match="wait until it has ended"),
    ):
        built()


def test_nothing_else_is_replaced(tmp_path: Path, pages: Path, built: Builder) -> None:
    (tmp_path / "knowledge").mkdir()
    (tmp_path / "knowledge" / "thesis.txt").write_text("years of work")
    with pytest.raises(KnowledgeError, match="holds something other than a knowledge"):
        built()
    assert (tmp_path / "knowledge" / "thesis.txt").read_text() == "years of work"


def test_a_knowledge_of_nothing_is_refused_and_says_why(tmp_path: Path, pages: Path, built: Builder) -> None:
    for page in pages.iterdir():
        page.write_bytes(b"\x00" * 9)
    with pytest.raises(KnowledgeError, match=r"no document could be read; the first is pages/opening.md: it has NUL"):
        built()
    for page in pages.iterdir():
        page.unlink()
    with pytest.raises(KnowledgeError, match="no document was found in pages"):
        built()
    assert not (tmp_path / "knowledge").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[sources]]\npath = "nowhere"', "nowhere does not exist"),
        ("[[sources]]", "needs exactly one of `path`, `sitemap` and `urls`"),
        ('[[sources]]\npath = "a"\nurls = ["http://a"]', "needs exactly one of"),
        ('[[sources]]\npath = "pages"\nurl = "http://a/{nmae}"', r"known are \{path\} and \{name\}"),
        ('[[sources]]\npath = "pages"\nformat = "word"', "allowed are auto, docx, faq"),
        ('[[sources]]\npath = "pages"\nhosts = ["a"]', "are for `sitemap` and `urls`"),
        ('[[sources]]\nurls = ["http://a"]\nprivate_addresses = ["10.0.0.0/99"]', "write an address or a network"),
        ('[[sources]]\nurls = ["ftp://a"]', "is no http or https URL"),
        ('[[sources]]\npath = "pages"\ninclud = ["a"]', "did you mean `include`"),
    ],
)
def test_a_mistake_in_the_file_is_named(pages: Path, built: Builder, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        built(text, "network = true")


def test_links_are_made_of_the_path_by_the_template(tmp_path: Path, pages: Path, built: Builder) -> None:
    (pages / "sub dir").mkdir()
    (pages / "sub dir" / "x.md").write_text("# Teapots\n\nWe have teapots.\n")
    built('[[sources]]\npath = "pages"\nurl = "https://docs.example.org/{name}/?from={path}"')
    found = Knowledge.open(tmp_path / "knowledge").search("teapots")[0].passage.url
    assert found == "https://docs.example.org/sub%20dir/x/?from=sub%20dir/x.md#teapots"


def test_languages_have_their_own_words(tmp_path: Path, pages: Path, built: Builder) -> None:
    for name, text in {"de": "Die Geschäftsführerin öffnet täglich.", "ja": "店は毎日九時に開きます。"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"# {name}\n\n{text}\n")
    sources = ['[[sources]]\npath = "pages"', *(f'[[sources]]\npath = "{n}"\nlanguage = "{n}"' for n in ("de", "ja"))]
    built("\n".join(sources))
    knowledge = Knowledge.open(tmp_path / "knowledge")
    assert knowledge.search("geschaftsfuhrerin")[0].passage.title == "de"
    assert knowledge.search("毎日九時ですか")[0].passage.title == "ja"
    assert knowledge.search("returning parcels")[0].passage.title == "Returns"


def test_progress_is_shown_with_the_time_left(
    tmp_path: Path, pages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    (tmp_path / "knowledge.toml").write_text(f'name = "shop"\nencoder = "{tiny(tmp_path / "bert")}"\n{SOURCE}')
    build(settings.read(tmp_path / "knowledge.toml"), tmp_path, tmp_path / "knowledge")
    shown = capsys.readouterr().err
    for what in ("reading: 50%, about", "encoding: 25%, about", "calibrating: 100%, about 0 s left"):
        assert what in shown


def test_the_manifest_is_json_and_the_index_an_ordinary_database(tmp_path: Path, pages: Path, built: Builder) -> None:
    built()
    assert json.loads((tmp_path / "knowledge" / "knowledge.json").read_bytes())["documents"] == 2
    connection = sqlite3.connect(f"file:{tmp_path / 'knowledge' / 'index.sqlite3'}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
