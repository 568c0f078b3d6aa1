"""Reading tasks: an unusable one is refused with its place before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.data import documents
from pruning.errors import TaskError
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task, with_gates
from pruning.recipe.bounds import Gates

Read = Callable[..., tasks.Task]
PAIRS = 'name = "a"\nkind = "pairs"\nchoices = 0'
A = {"id": "a", "question": "What is a?", "answer": "A."}
B = {"id": "b", "question": "What is b?", "answer": "B."}


def test_items_are_read_from_a_file_or_inline(task: Read, tmp_path: Path) -> None:
    from_file = task(PAIRS, A, {"question": "q", "answer": "a", "source": "ignored"})
    inline = task(
        PAIRS + '\nitems = [{id = "a", question = "What is a?", answer = "A."}, {question = "q", answer = "a"}]'
    )
    assert from_file == inline
    assert from_file.digest == inline.digest
    assert isinstance(from_file, tasks.PairsTask)
    assert [item.id for item in from_file.items if isinstance(item, tasks.Pair)] == ["a", "2"]
    (tmp_path / "items.jsonl").write_text(json.dumps(A) + "\n" + json.dumps(B))
    assert read_task(tmp_path / "task.toml").digest == inline.digest
    assert task(PAIRS, A, B).digest != inline.digest


def test_several_right_answers_need_no_reference_of_their_own(task: Read) -> None:
    several = task(PAIRS, {"question": "q", "answers": ["one", "two"]}, A)
    assert isinstance(several, tasks.PairsTask)
    pair = several.items[0]
    assert isinstance(pair, tasks.Pair)
    assert (pair.answer, pair.right) == ("one", ("one", "two"))
    with pytest.raises(TaskError, match=r"choices = 2, but the items have only 1 different answers for item '1'"):
        task(PAIRS.replace("0", "2"), {"question": "q", "answers": ["one", "A."]}, A)


def test_a_file_of_items_reads_the_same_as_training_text(task: Read, tmp_path: Path) -> None:
    """Also with a byte order mark and the line separators that JSON allows inside strings."""
    task(PAIRS, A, B)
    odd = A | {"answer": "A\u2028B\x85C", "title": "T"}
    lines = "\r\n".join(json.dumps(item, ensure_ascii=False) for item in (odd, B))
    (tmp_path / "items.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    found = read_task(tmp_path / "task.toml")
    assert isinstance(found, tasks.PairsTask)
    assert [item.texts["answer"] for item in found.items if isinstance(item, tasks.Pair)] == [odd["answer"], "B."]
    bodies = documents.read(tmp_path / "items.jsonl", lambda turns: turns[1]["content"])
    assert [text.body for text in bodies] == [odd["answer"], "B."]
    assert [text.title for text in bodies] == ["T", "What is b?"]
    kept = {text.bucket for text in bodies}
    for bucket in kept:
        (tmp_path / "task.toml").write_text(f'{PAIRS}\nitems = "items.jsonl"\nbuckets = {sorted(kept - {bucket})}')
        with pytest.raises(TaskError, match="1 of 2 items left"):
            read_task(tmp_path / "task.toml")


def test_gates_do_not_change_what_is_scored(task: Read) -> None:
    plain, gated = task(PAIRS, A, B), task(PAIRS + "\ngates = {max_nll_ratio = 2}", A, B)
    assert plain != gated
    assert plain.digest == gated.digest


def test_of_recipe_and_task_the_stricter_measured_gate_wins(task: Read) -> None:
    pairs = task(PAIRS + "\ngates = {max_nll_ratio = 1.5}", A, B)
    prompts = task('name = "b"\nkind = "behaviour"', {"prompt": "a"}, {"prompt": "b"})
    loose, strict = Gates(max_nll_ratio=2, max_kl=0.1), Gates(max_nll_ratio=1.2, max_accuracy_drop=0.1)
    assert with_gates(pairs, loose).gates == Gates(max_nll_ratio=1.5)
    assert with_gates(pairs, strict).gates == Gates(max_nll_ratio=1.2)  # without choices there is no accuracy
    assert with_gates(prompts, loose).gates == Gates(max_kl=0.1)
    assert with_gates(pairs, Gates()) == pairs


def test_only_held_out_items_are_scored_if_there_are_any(task: Read) -> None:
    held = [{**A, "id": f"h{n}", "held_out": True} for n in range(3)]
    found = task(PAIRS, A, *held, B)
    assert isinstance(found, tasks.PairsTask)
    assert [getattr(item, "id", "") for item in found.items] == ["h0", "h1", "h2"]


def test_items_have_the_buckets_of_training_text(task: Read) -> None:
    import hashlib

    items = [{"question": f"What is {n}?", "answer": "a"} for n in range(60)]
    found = task(PAIRS + "\nbuckets = [3, 4]", *items)
    assert isinstance(found, tasks.PairsTask)
    expected = [
        item["question"]
        for item in items
        if int(hashlib.sha1(item["question"].encode()).hexdigest(), 16) % 10 in (3, 4)
    ]
    assert [getattr(item, "question", "") for item in found.items] == expected


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([A, {**B, "answer": " \n"}], r"items.jsonl: item 2 \(id 'b'\): answer is empty"),
        ([A, {**B, "question": ""}], r"item 2 \(id 'b'\): question is empty"),
        ([A, {**B, "id": "a"}], r"item 2 \(id 'a'\): an earlier item has the same id"),
        ([A, {"question": "q"}], r"items.jsonl: item 2 \(id .2.\): answer is empty"),
        ([A, {**B, "answer": 3}], r"line 2: Expected `str`, got `int`.*answer"),
        ([A], "1 of 1 items left to score"),
        ([A, {**B, "held_out": True}], "1 of 2 items left"),
    ],
)
def test_wrong_items(task: Read, items: list[object], sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        task(PAIRS, *items)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'name = "a"\nkind = "pears"',
            "'pears' - at `\\$.kind`; allowed: behaviour, chat, choice, knowledge, lm-eval, pairs, text",
        ),
        (PAIRS + "\nanswers = 3", "unknown field `answers`; allowed: answer_tokens, "),
        (PAIRS + '\nitems = "no.jsonl"', "no.jsonl: cannot be read: No such file"),
        ('name = "a/b"\nkind = "pairs"\nitems = []', "name"),
        ("kind = [", "is not TOML"),
        (PAIRS + "\nitems = []\ngates = {max_kl = 0.1}", "gates.max_kl cannot be judged: .* kind pairs"),
        (PAIRS + "\nitems = []\ngates = {max_accuracy_drop = 0.1}", "gates.max_accuracy_drop cannot be judged"),
        (PAIRS + "\nitems = []\ngates = {max_nll_ratio = 0.9}", "at `\\$.gates.max_nll_ratio`"),
        ('name = "a"\nkind = "behaviour"\nitems = []\ngates = {max_nll_ratio = 2}', "gates.max_nll_ratio cannot be"),
        (
            'name = "a"\nkind = "pairs"\nitems = [{question = "q", answer = "a"}, {question = "r", answer = "b"}]',
            "choices = 4, but the items have only 2 different answers for item '1'",
        ),
        (
            'name = "a"\nkind = "choice"\nitems = [{question = "q", options = ["a", "b"], answer = 2}]',
            "answer is 2, but the last option is 1, from 0",
        ),
        (
            'name = "a"\nkind = "chat"\nitems = [{messages = [{role = "user", content = "q"}]}]',
            "assistant turn is empty",
        ),
    ],
)
def test_wrong_tasks(task: Read, text: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        task(text)
