"""The base's own answers against transformers' generate, their seeds, and the command that writes them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands import task
from pruning.data.base_answers import Sampling, base_answers, questions_in
from pruning.data.documents import read
from pruning.data.encoder import Encoder
from pruning.errors import DataError, TaskError
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTIONS = ["Who are you?", "Why?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    path = tiny.save(tmp_path_factory.mktemp("answers") / "model")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Artifact:
    return base_artifact(str(folder), folder.parent / "cache")


def test_greedy_answers_are_those_of_transformers(folder: Path, base: Artifact) -> None:
    found = list(base_answers(base, QUESTIONS, Sampling(tokens=12, temperature=0, seed=0)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    encoder = Encoder(base)
    for question, answer in zip(QUESTIONS, found, strict=True):
        prompt = torch.tensor([encoder.prompt([{"role": "user", "content": question}])])
        ids = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert answer == encoder.decode([token for token in ids if token != 256])


def test_an_answer_depends_on_seed_and_question_alone(base: Artifact) -> None:
    def answers(questions: list[str], seed: int) -> list[str]:
        return list(base_answers(base, questions, Sampling(tokens=16, temperature=1, seed=seed)))

    first = answers(QUESTIONS, 1)
    assert answers(QUESTIONS[::-1], 1) == first[::-1]
    assert answers(QUESTIONS, 2) != first


def test_the_command_writes_conversations_that_a_recipe_reads(
    folder: Path, base: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [
        {"question": "Who are you?"},
        {"question": "Secret?", "held_out": True},
        {"question": "Why?", "answer": "x"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n")
    output = tmp_path / "answers.jsonl"
    arguments = ["answers", str(tmp_path / "items.jsonl"), "--base", str(folder), "--output", str(output)]
    arguments += ["--base-cache", str(folder.parent / "cache"), "--tokens", "8"]
    assert task.main(arguments) == 0
    assert "2 answers of" in capsys.readouterr().out
    documents = read(output, Encoder(base).render)
    assert [document.title for document in documents] == QUESTIONS
    assert documents[0].body.startswith("user: Who are you?\nassistant: ")
    with pytest.raises(TaskError, match="is there already"):
        task.main(arguments)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"text": "no question"}', 'line 1 has no "question"'),
        ("[1]", 'line 1 has no "question"'),
        ("{", "cannot be read as JSON lines"),
        ('{"question": "x", "held_out": true}', "holds no question that is not held out"),
    ],
)
def test_files_without_questions_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        questions_in(path)
