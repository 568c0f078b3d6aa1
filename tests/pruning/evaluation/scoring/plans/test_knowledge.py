"""A task of kind knowledge on a tiny model: what is found, refused, chosen, said and cited."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer, decoders

from pruning.errors import TaskError
from pruning.evaluation.comparison.gates import judge
from pruning.evaluation.scoring import measures, retrieval
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.planning import plan_task
from pruning.evaluation.tasks import task as tasks
from pruning.recipe.bounds import Gates
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import load
from server.knowledge.passages import Passage
from tests.pruning import tiny
from tests.pruning.evaluation.scored import score
from tests.support.library import library

Read = Callable[..., tasks.Task]
HEAD = 'name = "a"\nkind = "knowledge"\nknowledge = "library"\nchoices = 2\ngreedy = 64\nanswer_tokens = 8'
OFF_TOPIC = '\noff_topic = ["Who painted xylophones?", "Zebra quagga okapi?"]'
HOURS = {
    "id": "hours",
    "question": "When does the library open?",
    "answer": "The library opens at nine and closes at five.",
}
FEE = {"id": "fee", "question": "What does a late book cost?", "answer": "A late book costs ten cents a day."}
LOST = {"id": "lost", "question": "Gnu yak axolotl?", "answer": "Nothing says so in these pages."}


@pytest.fixture
def knowledge_task(task: Read, tmp_path: Path) -> tasks.KnowledgeTask:
    """Asks the library's knowledge two questions that it answers, and one that it does not."""
    library(tmp_path)
    found = task(HEAD + OFF_TOPIC, HOURS, FEE, LOST)
    assert isinstance(found, tasks.KnowledgeTask)
    return found


@pytest.fixture(scope="module")
def long_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny random model with room for passages, and a tokenizer that can be constrained."""
    folder = tmp_path_factory.mktemp("asked")
    source = tiny.save(folder / "tiny", max_position_embeddings=4096)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(source / "tokenizer.json"))
    return base_artifact(str(source), folder / "base")


@pytest.fixture
def scores(knowledge_task: tasks.KnowledgeTask, long_artifact: Artifact) -> Scores:
    return score(load(long_artifact), long_artifact, knowledge_task)


def test_each_question_is_found_refused_and_answered(scores: Scores) -> None:
    found = scores.measures
    assert found[measures.HIT_1] == found[measures.HIT_5] == (1, 1, 0)
    assert found[measures.RECIPROCAL_RANK] == (1, 1, 0)
    assert found[measures.OFF_TOPIC_REFUSED] == (1, 1)
    assert found[measures.ON_TOPIC_REFUSED] == (0, 0, 1)
    assert found[measures.ACCURACY][2] == 0  # refused
    assert scores.answers[1] == FEE["answer"]  # stored, and given verbatim
    assert found[measures.CONTAINED][1:] == found[measures.CONTAINED_QUOTED][1:] == (1, 0)
    assert len(found[measures.SUPPORTED]) == 2  # without the refusal
    assert found[measures.SUPPORTED][1] == 1


def test_a_quoted_reply_of_a_random_model_is_supported_where_a_free_one_is_not(scores: Scores) -> None:
    assert scores.measures[measures.SUPPORTED][0] == 0
    assert scores.measures[measures.SUPPORTED_QUOTED] == (1, 1)
    assert scores.answers[0] not in HOURS["answer"]


def test_without_knowledge_a_model_scores_as_on_pairs(scores: Scores, task: Read, long_artifact: Artifact) -> None:
    pairs = task('name = "b"\nkind = "pairs"\nchoices = 2\nanswer_tokens = 8', HOURS, FEE, LOST)
    alone = score(load(long_artifact), long_artifact, pairs).measures
    assert scores.measures[measures.ACCURACY_ALONE] == alone[measures.ACCURACY]
    assert scores.measures[measures.NLL][2] == pytest.approx(alone[measures.NLL][2], rel=1e-6)  # refused
    assert scores.measures[measures.NLL][0] != pytest.approx(alone[measures.NLL][0], rel=1e-6)


def test_passages_are_before_the_question(knowledge_task: tasks.KnowledgeTask, long_artifact: Artifact) -> None:
    plan = plan_task(knowledge_task, long_artifact)
    with_passages, alone = (plan.jobs[0][n].first for n in (0, 2))
    assert with_passages > alone + len(HOURS["answer"])
    assert plan.jobs[2][0].ids == plan.jobs[2][2].ids  # a refused question has none


def test_gates_judge_what_is_found(scores: Scores, knowledge_task: tasks.KnowledgeTask) -> None:
    gates = Gates(max_missed=0.4, max_off_topic_answered=0.05, max_on_topic_refused=1, max_unsupported=0.2, max_wrong=1)
    judged = {one.gate: one for one in judge(msgspec.structs.replace(knowledge_task, gates=gates), scores, scores)}
    assert judged["max_missed"].measured.value == pytest.approx(1 / 3)
    assert not judged["max_missed"].passed  # by the worse bound
    assert judged["max_off_topic_answered"].measured.high == 0
    assert judged["max_on_topic_refused"].measured.value == pytest.approx(1 / 3)
    assert judged["max_unsupported"].measured.value == pytest.approx(0.5)
    assert [gate for gate, one in judged.items() if one.passed] == [
        "max_off_topic_answered", "max_wrong", "max_on_topic_refused",
    ]  # fmt: skip


def test_models_may_answer_fewer_questions_than_are_searched(
    task: Read, tmp_path: Path, long_artifact: Artifact
) -> None:
    library(tmp_path)
    plan = plan_task(task(HEAD + OFF_TOPIC + "\nanswered = 2", HOURS, FEE, LOST), long_artifact)
    assert len(plan.items) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEAD.replace("library", "nowhere") + OFF_TOPIC, "knowledge of the task a cannot be opened"),
        (HEAD + '\noff_topic = "none.txt"', "none.txt: cannot be read"),
        (HEAD + '\noff_topic = ["", "One?"]', "off_topic has 1 questions"),
        (HEAD.replace("choices = 2", "choices = 5") + OFF_TOPIC, "only 3 different answers"),
        (HEAD + OFF_TOPIC + "\ngates = {max_kl = 1}", "gates.max_kl cannot be judged"),
    ],
)
def test_an_unusable_task_is_refused(task: Read, long_artifact: Artifact, text: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        plan_task(task(text, HOURS, FEE, LOST), long_artifact)


def test_gates_of_knowledge_are_refused_elsewhere(task: Read) -> None:
    with pytest.raises(TaskError, match=r"gates\.max_missed cannot be judged"):
        task('name = "b"\nkind = "pairs"\nchoices = 0\ngates = {max_missed = 0.2}', HOURS, FEE)


def test_the_key_phrase_is_the_rarest_words_that_the_question_does_not_have() -> None:
    answers = ["The code of the archive is hidden under red carpets.", "The archive is open.", "The code is secret."]
    items = [tasks.Asked(id=str(n), question="What code?", answer=text) for n, text in enumerate(answers)]
    found = retrieval.key_phrases([*items, tasks.Asked(id="own", question="q", answer="The a b.", phrase="A  B!")])
    assert found["own"] == "a b"
    words = answers[0].lower().rstrip(".").split()
    rarity = {"the": math.log(4 / 4), "code": 0, "archive": math.log(4 / 2), "is": math.log(4 / 3)}
    sums = [sum(rarity.get(word, math.log(4)) for word in words[n : n + 3]) for n in range(len(words) - 2)]
    start = sums.index(max(sums))
    assert found["0"] == " ".join(words[start : start + 3]) == "hidden under red"


def test_a_passage_is_right_by_url_or_by_text() -> None:
    passage = Passage("One two three four five.", "T", "https://a/b#c")
    answers = ("Two three", "wo three", "Zero one two, three four five six", "other")
    items = [tasks.Asked(question="q", answer=answer) for answer in answers]
    assert [retrieval.right(item, passage) for item in items] == [True, False, True, False]
    urls = ("https://a/b", "https://a/b#c", "https://a/b#d")
    items = [tasks.Asked(question="q", answer="x", url=url) for url in urls]
    assert [retrieval.right(item, passage) for item in items] == [True, True, False]
