"""Hostile documents beside an ordinary page: each is named with its reason, within limits, and the page is built."""

import time
from pathlib import Path

import pytest

from server.knowledge.readers.process import Reading, Unreadable
from server.knowledge.search import Knowledge
from tests.server.knowledge.conftest import Builder
from tests.server.knowledge.readers import hostile

REASONS = {
    "zip_bomb.docx": "would unpack to 300 MB",
    "lying_zip.docx": "cannot be read as DOCX",
    "laughing.docx": "amplification factor",
    "peeping.docx": "has no text",
    "no_zip.docx": "is not DOCX",
    "looping.pdf": "cyclic page references",
    "swelling.pdf": "Limit reached",
    "no_pdf.pdf": "cannot be read as PDF",
    "cut.pdf": "cannot be read as PDF",
    "huge.html": "has 24 MB, more than 20",
    "nul.txt": "has NUL bytes",
    "nul.html": "has NUL bytes",
    "restless.md": "takes more than 2 seconds of computation",
    "deep.jsonl": "line 1 is not",
    "wrong.jsonl": "line 1 is not",
    "empty.md": "has no text",
    "blank.html": "is empty",
    "link.md": "leads out of the folder",
    "circle.md": "leads out of the folder",
    "dangling.md": "leads out of the folder",
    "pipe.md": "is no regular file",
}


@pytest.mark.slow
def test_hostile_documents_are_named_and_the_rest_is_built(tmp_path: Path, pages: Path, built: Builder) -> None:
    for name, make in hostile.DOCUMENTS.items():
        (pages / name).write_bytes(make())
    hostile.write_links(pages)
    begun = time.monotonic()
    made = built(head="document_seconds = 2\nreader_megabytes = 400")
    reasons = {one.document.removeprefix("pages/"): one.reason for one in made.failed}
    assert reasons.keys() == REASONS.keys()
    assert not {name: reasons[name] for name, part in REASONS.items() if part not in reasons[name]}
    assert not [reason for reason in reasons.values() if "Traceback" in reason or len(reason) > 600]
    knowledge = Knowledge.open(tmp_path / "knowledge")
    assert [document.title for document in knowledge.documents()] == ["Opening hours", "Returns"]
    assert not [one for one in knowledge.search("password swordfish root") if "swordfish" in one.passage.text]
    again = built(head="document_seconds = 2\nreader_megabytes = 400")
    assert again.counts.read == 2  # the pipe and the huge page, of which nothing is read
    assert not again.changed
    assert time.monotonic() - begun < 600


@pytest.fixture
def reading() -> Reading:
    return Reading(megabytes=400, seconds=2)


def test_a_child_that_a_document_killed_is_replaced(reading: Reading) -> None:
    with reading:
        with pytest.raises(Unreadable, match=r"more than 2 seconds|longer than"):
            reading.read(hostile.restless_markdown(), "markdown", "restless.md")
        assert reading.read(b"# Fine\n\nText.", "markdown", "fine.md")[0].title == "Fine"


def test_nesting_without_end_is_no_text(reading: Reading) -> None:
    with reading, pytest.raises(Unreadable, match="has no text"):
        reading.read(hostile.deep_html(), "html", "deep.html")


def test_an_outline_in_a_circle_ends(reading: Reading) -> None:
    with reading:
        [found] = reading.read(hostile.endless_outline(), "pdf", "outline.pdf")
    assert found.sections[0].text == "Some words."
