"""lm-eval's tasks on local data: scores equal those from a direct forward pass per document."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.data.encoder import Encoder
from pruning.errors import TaskError
from pruning.evaluation.comparison.compare import compare
from pruning.evaluation.comparison.results import results_of
from pruning.evaluation.report.terminal import table
from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.planning import plan_task
from pruning.evaluation.tasks.reading import read_task
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import load
from tests.pruning.evaluation.scored import score

pytestmark = pytest.mark.slow

WORDS = ("four", "nine", "sixteen", "a hundred", "none")
DOCUMENTS = [
    {
        "question": f"What is {n} times {n}?",
        "options": list(WORDS[: 2 + n % 4]),
        "answer": n % (2 + n % 4),
        "answers": [0, 1],
    }
    for n in range(12)
]
CHOICE = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WANTED = """
output_type: loglikelihood
doc_to_text: "Question: {{question}} "
doc_to_target: "{{options[answer]}}"
metric_list: [{metric: acc}, {metric: perplexity}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{question}} {{question}}"
metric_list: [{metric: word_perplexity}]
"""
GENERATE = """
output_type: generate_until
doc_to_text: "Q: {{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Connections fail, and nothing is cached between tests."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("lm-eval asked the network"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder: Path, kind: str, more: str = "") -> Path:
    """A task file, and lm-eval's YAML with its data in a folder beside it."""
    (folder / "harness").mkdir()
    (folder / "harness" / "documents.json").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    text = "task: squares\ndataset_path: json\ndataset_kwargs: {data_files: {test: documents.json}}\ntest_split: test\n"
    (folder / "harness" / "squares.yaml").write_text(text + kind)
    file = folder / "task.toml"
    file.write_text(f'kind = "lm-eval"\nname = "squares"\ntask = "squares"\nfolder = "harness"\n{more}')
    return file


def scored(folder: Path, artifact: Artifact, kind: str, more: str = "") -> Scores:
    return score(load(artifact), artifact, read_task(written(folder, kind, more)))


def slowly(artifact: Artifact, context: str, wanted: str) -> torch.Tensor:
    """log p of each token of `wanted` by transformers' own model; tokens are bytes."""
    model: Any = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32)
    encoder = Encoder(artifact)
    before, after = encoder.ids(context) or encoder.end, encoder.ids(wanted)
    with torch.no_grad():
        rows = model(torch.tensor([before + after])).logits[0].log_softmax(dim=-1)
    return torch.stack([rows[len(before) - 1 + n, id] for n, id in enumerate(after)])


def test_multiple_choice_equals_a_direct_computation(tmp_path: Path, artifact: Artifact) -> None:
    found = scored(tmp_path, artifact, CHOICE)
    right, right_by_length, nll = [], [], []
    for document in DOCUMENTS:
        options: Any = document["options"]
        values = [slowly(artifact, f"Question: {document['question']}\nAnswer:", f" {text}") for text in options]
        sums = [value.sum().item() for value in values]
        by_length = [total / len(text) for total, text in zip(sums, options, strict=True)]
        right.append(float(sums.index(max(sums)) == document["answer"]))
        right_by_length.append(float(by_length.index(max(by_length)) == document["answer"]))
        nll.append(-values[int(str(document["answer"]))].mean().item())
    assert found.measures[measures.ACCURACY] == tuple(right)
    assert found.measures["acc_norm"] == tuple(right_by_length)
    assert found.measures[measures.NLL] == pytest.approx(nll, abs=1e-2)
    assert 0 < sum(right_by_length) < len(right)
    assert set(found.answers) <= set(WORDS)


def test_target_texts_and_rolling_windows_equal_a_direct_computation(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "a").mkdir()
    found = scored(tmp_path / "a", artifact, WANTED)
    for document, value in zip(DOCUMENTS, found.measures[measures.NLL], strict=True):
        options: Any = document["options"]
        wanted = f" {options[int(str(document['answer']))]}"
        # the space that ends the context is scored with what follows it
        expected = -slowly(artifact, f"Question: {document['question']}", wanted).mean().item()
        assert value == pytest.approx(expected, abs=1e-2)
    assert set(found.measures[measures.ACCURACY]) <= {0.0, 1.0}
    (tmp_path / "b").mkdir()
    found = scored(tmp_path / "b", artifact, ROLLING)
    text = " ".join([str(DOCUMENTS[3]["question"])] * 3)
    assert found.measures[measures.NLL][3] == pytest.approx(-slowly(artifact, "", text).mean().item(), abs=1e-2)
    assert math.isclose(len(found.measures[measures.NLL]), len(DOCUMENTS))


def test_an_option_without_context_is_scored_from_its_first_token(tmp_path: Path, artifact: Artifact) -> None:
    found = scored(tmp_path, artifact, re.sub("doc_to_text: .*", 'doc_to_text: ""', CHOICE))
    for document, value in zip(DOCUMENTS, found.measures[measures.NLL], strict=True):
        options: Any = document["options"]
        right = f" {options[int(str(document['answer']))]}"
        assert value == pytest.approx(-slowly(artifact, "", right).mean().item(), abs=1e-2)


def test_corrected_answers_are_scored_anew(tmp_path: Path, artifact: Artifact) -> None:
    task = read_task(written(tmp_path, CHOICE))
    before = compare(artifact, artifact, task, tmp_path / "cache").base.scores
    again = compare(artifact, artifact, task, tmp_path / "cache").base.scores
    other = [document | {"answer": (int(str(document["answer"])) + 1) % 2} for document in DOCUMENTS]
    (tmp_path / "harness" / "documents.json").write_text("\n".join(map(json.dumps, other)))
    after = compare(artifact, artifact, task, tmp_path / "cache").base.scores
    assert before.measures[measures.NLL] == again.measures[measures.NLL] != after.measures[measures.NLL]


def test_a_task_without_metrics_per_document_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    with pytest.raises(TaskError, match=r"squares has no metric per document \(bleu\), so no interval can be computed"):
        scored(tmp_path, artifact, GENERATE.replace("exact_match", "bleu"), "limit = 2\n")


def test_replies_are_generated_by_the_engine_and_judged_by_lm_eval(tmp_path: Path, artifact: Artifact) -> None:
    found = scored(tmp_path, artifact, GENERATE, "limit = 4\n")
    assert len(found.answers) == 4
    assert all("\n" not in text for text in found.answers)
    assert found.measures[measures.EXACT] == found.measures[measures.ACCURACY] == (0.0,) * 4
    assert found.measures[measures.ERROR] == (1.0,) * 4
    assert measures.NLL not in found.measures


def test_documents_are_compared_with_base_and_quantised(tmp_path: Path, artifact: Artifact) -> None:
    task = read_task(written(tmp_path, CHOICE, "[gates]\nmax_nll_ratio = 1.01\nmax_accuracy_drop = 0.01\n"))
    found = results_of(compare(artifact, artifact, task, tmp_path / "cache"))
    assert found.items == len(DOCUMENTS)
    assert {gate.gate: gate.passed for gate in found.gates} == {"max_nll_ratio": True, "max_accuracy_drop": True}
    assert found.rows[1].nll_ratio is not None
    assert found.rows[1].nll_ratio.low < found.rows[1].nll_ratio.high
    assert "acc_norm" in table(found)


@pytest.mark.parametrize(
    ("kind", "more", "sentence"),
    [
        (
            CHOICE + 'process_docs: !function "code.run"\n',
            "",
            "contains Python code, which lm-eval would run: review it",
        ),
        (CHOICE.replace("options", "optons", 1), "", "lm-eval cannot carry out the task squares"),
        (GENERATE, "[gates]\nmax_nll_ratio = 1.1\n", "max_nll_ratio cannot be judged: squares generates"),
        (
            CHOICE.replace("target: answer", "target: answers"),
            "[gates]\nmax_nll_ratio = 1.1\n",
            "max_nll_ratio cannot be judged: squares has several right options",
        ),
        (ROLLING, "[gates]\nmax_accuracy_drop = 0.1\n", "max_accuracy_drop cannot be judged: squares is plain text"),
        (
            ROLLING.replace("{{question}} " * 2 + "{{question}}", ""),
            "",
            "item '0' has no text, so nothing can be scored",
        ),
        (CHOICE, "[gates]\nmax_kl = 0.1\n", "gates.max_kl cannot be judged: a task of kind lm-eval"),
    ],
)
def test_unusable_tasks_are_refused_in_one_sentence(
    tmp_path: Path, artifact: Artifact, kind: str, more: str, sentence: str
) -> None:
    with pytest.raises(TaskError) as refusal:
        plan_task(read_task(written(tmp_path, kind, more)), artifact)
    assert sentence in refusal.value.message


def test_an_unknown_task_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    file = written(tmp_path, CHOICE)
    file.write_text(file.read_text().replace('task = "squares"', 'task = "cubes"'))
    with pytest.raises(TaskError, match="cannot carry out the task cubes: KeyError"):
        plan_task(read_task(file), artifact)
