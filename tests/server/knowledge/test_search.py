from pathlib import Path

import pytest

from server.engine.runners.encoder import Encoder
from server.errors import ArtifactError
from server.knowledge.index.vectors import unit
from server.knowledge.search import Knowledge
from tests.server.engine.runners.test_encoder import tiny
from tests.server.knowledge.conftest import Builder


def test_a_question_finds_the_passage_below_its_heading_with_its_link(opened: Knowledge) -> None:
    best = opened.search("are you open on Sunday?")[0]
    assert best.passage.text == "On Sundays it is closed."
    assert best.passage.title == "Opening hours"
    assert best.passage.headings == ("Sundays",)
    assert best.passage.url == "pages/opening.md#sundays"
    assert 0 < best.coverage <= 1
    assert best.cosine is None


def test_a_stored_question_is_known_with_its_whole_answer(opened: Knowledge) -> None:
    best = opened.search("How can I return parcels?")[0]
    assert best.passage.question == "How do I return a parcel?"
    assert best.passage.text == "Bring the parcel and the receipt to any counter."
    assert best.same_question == 1.0
    assert opened.search("May I bring a receipt?")[0].same_question < 0.5


@pytest.mark.parametrize(
    "question", ["", " \n", "?!", "\x00", '"', "NOT OR AND", "a* b^2 -c (d) {e}: f", "x" * 100_000]
)
def test_no_question_is_syntax(opened: Knowledge, question: str) -> None:
    assert opened.search(question) == []


def test_a_visitor_finds_only_what_one_of_his_groups_may_see(tmp_path: Path, pages: Path, built: Builder) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "wages.md").write_text("# Wages\n\nThe parcel counter pays twelve an hour.\n")
    built('[[sources]]\npath = "pages"\n[[sources]]\npath = "inner"\ngroups = ["staff", "board"]')
    knowledge = Knowledge.open(tmp_path / "knowledge")

    def titles(*groups: str) -> set[str]:
        return {one.passage.title for one in knowledge.search("parcel wages", 10, frozenset(groups))}

    assert titles() == titles("visitors") == {"Returns"}
    assert titles("board") == titles("staff", "else") == {"Returns", "Wages"}


def test_what_others_may_see_does_not_change_a_score(tmp_path: Path, pages: Path, built: Builder) -> None:
    built()
    alone = Knowledge.open(tmp_path / "knowledge").search("How do I return a parcel?", 10)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "parcel.md").write_text("# Parcel\n\n" + "return parcel " * 50)
    built('[[sources]]\npath = "inner"\ngroups = ["staff"]\n[[sources]]\npath = "pages"')
    beside = Knowledge.open(tmp_path / "knowledge").search("How do I return a parcel?", 10)
    assert [(one.passage, one.score, one.coverage) for one in alone] == [
        (one.passage, one.score, one.coverage) for one in beside
    ]


def test_a_changed_file_is_refused(tmp_path: Path, opened: Knowledge) -> None:
    index = tmp_path / "knowledge" / "index.sqlite3"
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"index.sqlite3 was changed"):
        Knowledge.open(tmp_path / "knowledge")


def test_texts_are_compared_with_the_prompts_that_their_vectors_were_made_with(
    tmp_path: Path, pages: Path, built: Builder
) -> None:
    bert = tiny(tmp_path / "bert")
    (bert / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: ", "document": "text: "}}')
    built(head=f'encoder = "{bert}"')
    knowledge = Knowledge.open(tmp_path / "knowledge")
    texts = ["when it opens", "a parcel"]
    vectors = unit(Encoder.open(bert).encode(["query: a day", *(f"text: {text}" for text in texts)]).vectors)
    assert knowledge.compare("a day", texts) == pytest.approx(list(vectors[1:] @ vectors[0]), abs=1e-5)
