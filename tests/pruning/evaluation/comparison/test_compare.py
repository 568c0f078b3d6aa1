"""`secateur evaluate --task` on a tiny pruned model: scores, gates, table, page and JSON."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.data.encoder import Encoder
from pruning.evaluation.comparison import compare
from pruning.evaluation.comparison.results import Results
from pruning.evaluation.scoring.plans.texts import TextPlan
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task
from server.artifact.checkpoint.reader import Artifact
from server.engine.native import absent
from server.engine.runners import Options, Scoring
from server.engine.runners.choosing import Wanted, load_runner
from tests.pruning import tiny
from tests.pruning.conftest import RECIPE
from tests.pruning.evaluation.scored import score

pytestmark = pytest.mark.slow

ITEMS = [{"id": f"q{n}", "question": f"<What> is {n}?", "answer": f"It is & {n}{n}."} for n in range(12)]


def learned(folder: Path) -> Path:
    """A tiny model trained on the answers, so that pruning does harm."""
    tiny.save(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [tokenizer.encode(f"Question: {item['question']}\nAnswer: {item['answer']}").ids for item in ITEMS]
    length = min(map(len, texts))
    ids = torch.tensor([text[:length] for text in texts])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.bfloat16().save_pretrained(folder)
    return folder


class Place:
    """A tiny pruned artifact, its base, and a task."""

    def __init__(self, folder: Path, text: Path) -> None:
        model = learned(folder / "model")
        self.folder = folder
        self.artifact = folder / "pruned"
        self.cache = folder / "base"
        recipe = folder / "recipe.toml"
        stage = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "magnitude", sparsity = "8:64" }\n'
        recipe.write_text(RECIPE.format(model=model, text=text, stages=stage))
        assert main(["prune", str(recipe), "--output", str(self.artifact), "--base-cache", str(self.cache)]) == 0

    def evaluate(self, text: str, items: list[dict[str, Any]]) -> int:
        (self.folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
        (self.folder / "task.toml").write_text(f'name = "mine"\nitems = "items.jsonl"\n{text}')
        arguments = ["--task", str(self.folder / "task.toml"), "--base-cache", str(self.cache)]
        return main(["evaluate", str(self.artifact), *arguments])

    @property
    def results(self) -> Results:
        return msgspec.json.decode((self.folder / "pruned.evaluation/mine.json").read_bytes(), type=Results)

    @property
    def page(self) -> str:
        return (self.folder / "pruned.evaluation/mine.html").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Place:
    return Place(tmp_path_factory.mktemp("place"), text)


def test_three_models_on_one_task(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.evaluate('kind = "pairs"\n[gates]\nmax_nll_ratio = 9\n', ITEMS) == 0
    found = place.results
    artifact = Artifact.open(place.artifact)
    [base] = [Artifact.open(path.parent) for path in place.cache.glob("*/lineage.json")]
    assert [row.bytes for row in found.rows][::3] == [base.size, artifact.size]
    assert [row.role for row in found.rows] == ["base", "found", "quantised", "pruned"]
    assert found.rows[1].bytes == (place.folder / "model" / "model.safetensors").stat().st_size
    assert found.rows[1].measures == found.rows[0].measures
    assert found.ids == tuple(item["id"] for item in ITEMS)
    assert found.scores["pruned"]["nll"] == pytest.approx(
        [one + change for one, change in zip(found.scores["base"]["nll"], found.changes["pruned"], strict=True)]
    )
    own = score(tiny.loaded(artifact), artifact, read_task(place.folder / "task.toml"))
    mean = sum(own.measures["nll"]) / len(ITEMS)
    assert found.rows[3].measures["nll"].value == pytest.approx(mean, rel=0.01)  # it served in bfloat16, perhaps
    ratio = found.rows[3].measures["nll"].value / found.rows[0].measures["nll"].value
    assert found.rows[3].nll_ratio
    assert found.rows[3].nll_ratio.value == pytest.approx(ratio)
    assert found.passed
    shown = capsys.readouterr().out
    assert "Passed: every gate holds" in shown
    for row in found.rows:
        assert f"{row.bytes:,}" in shown
        assert f"{row.measures['nll'].value:.3f} [{row.measures['nll'].low:.3f}" in shown
    assert set(found.layers["sparsity"].values()) == {0.875}


def test_a_failed_gate_exits_with_3_and_prints_the_worst_regressions(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.evaluate('kind = "pairs"\n[gates]\nmax_nll_ratio = 1\nmax_accuracy_drop = 1', ITEMS) == 3
    found = place.results
    assert [gate.passed for gate in found.gates] == [False, True]
    assert found.gates[0].measured.high > 1
    shown = capsys.readouterr().out
    assert "Failed: 1 of 2 gates" in shown
    changes = dict(zip([item["id"] for item in ITEMS], found.changes["pruned"], strict=True))
    worst = sorted(changes, key=lambda name: -changes[name])
    assert [item.id for item in found.regressions] == [name for name in worst if changes[name] > 0][:10]
    for item in found.regressions[:3]:
        assert item.id in shown
        assert item.wanted in shown


def test_a_gate_is_judged_by_the_bound_not_the_mean(place: Place) -> None:
    place.evaluate('kind = "pairs"\n', ITEMS)
    ratio = place.results.rows[3].nll_ratio
    assert ratio
    between = max(1.0, (ratio.value + ratio.high) / 2)
    assert ratio.value < between < ratio.high
    assert place.evaluate(f'kind = "pairs"\n[gates]\nmax_nll_ratio = {between}', ITEMS) == 3


def test_behaviour_is_compared_with_the_base(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [{"prompt": item["question"]} for item in ITEMS]
    assert place.evaluate('kind = "behaviour"\ngreedy = 5\n[gates]\nmax_kl = 0.000001', prompts) == 3
    found = place.results
    assert found.measure == "kl"
    assert found.rows[0].measures["kl"].high == 0
    assert 0 < found.rows[2].measures["kl"].value < found.rows[3].measures["kl"].value
    assert found.regressions[0].base_answer
    assert "max_kl does not hold" in capsys.readouterr().out


def test_windows_of_text_give_the_perplexity_of_a_recipe(place: Place, text: Path) -> None:
    (place.folder / "task.toml").write_text(
        f'name = "mine"\nkind = "text"\nsource = "{text}"\nbuckets = [7, 8, 9]\ntokens = 128\nwindow = 32'
    )
    arguments = ["--task", str(place.folder / "task.toml"), "--base-cache", str(place.cache)]
    assert main(["evaluate", str(place.artifact), *arguments]) == 0
    recorded = Artifact.open(place.artifact).lineage.evaluation
    assert recorded
    found = [row.measures["perplexity"].value for row in place.results.rows]
    assert found[0] == pytest.approx(recorded.perplexity["dense"], rel=0.05)  # that is float32
    assert found[3] == pytest.approx(recorded.perplexity["pruned"], rel=0.05)


@pytest.mark.parametrize("window", [2, 255, 256, 257, 258, 513])
def test_every_token_of_a_window_but_the_first_is_scored(place: Place, text: Path, window: int) -> None:
    task = tasks.TextTask(name="mine", source=str(text), tokens=2 * window, window=window)
    plan = TextPlan(task, Encoder(Artifact.open(place.artifact)))
    for job in plan.jobs:
        assert sum((request.target for request in job), ()) == job[-1].ids[1:]
        assert len(job[-1].ids) == window


def test_an_interrupted_evaluation_resumes_with_the_next_model(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = 'kind = "pairs"\nseed = 5'
    loaded: list[str] = []

    def load(artifact: Artifact, wanted: Wanted, options: Options) -> Scoring:
        loaded.append(artifact.path.name)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return load_runner(artifact, wanted, options)

    monkeypatch.setattr(compare, "load_runner", load)
    assert place.evaluate(task, ITEMS) == 130
    assert "to resume" in capsys.readouterr().err
    assert place.evaluate(task, ITEMS) == 0
    # base; quantised, interrupted; quantised again; pruned
    assert loaded == [loaded[0], "artifact", "artifact", "pruned"]
    assert not list((place.cache / "evaluations").glob("quantised-*"))
    first = place.results
    assert place.evaluate(task, ITEMS) == 0
    assert len(loaded) == 4
    assert msgspec.structs.replace(place.results, created="") == msgspec.structs.replace(first, created="")


def test_errors_are_reported_before_any_model_is_loaded(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "load_runner", None)
    assert place.evaluate('kind = "pairs"', [*ITEMS, {"question": "x" * 200, "answer": "y"}]) == 2
    assert "item '13' is" in capsys.readouterr().err
    assert place.evaluate('kind = "pairs"', [*ITEMS, {"question": "x", "answer": ""}]) == 2
    assert "answer is empty" in capsys.readouterr().err
    arguments = ["--task", str(place.folder / "task.toml"), "--base-cache", str(place.folder / "elsewhere")]
    place.evaluate('kind = "pairs"\nname_ = 3', ITEMS)
    capsys.readouterr()
    (place.folder / "task.toml").write_text('name = "mine"\nkind = "text"\nsource = "x"')
    assert main(["evaluate", str(place.artifact), *arguments]) == 2
    assert "the dense base is not in" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["auto", "transformers"])
def test_the_report_names_the_runner_and_why_it_was_chosen(
    place: Place, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    if wanted == "auto" and (reason := absent()):
        pytest.skip(reason)
    place.evaluate('kind = "pairs"', ITEMS)
    arguments = ["--task", str(place.folder / "task.toml"), "--base-cache", str(place.cache), "--runner", wanted]
    assert main(["evaluate", str(place.artifact), *arguments]) == 0
    runner, reason = {"auto": ("native", "the model has a plan"), "transformers": ("transformers", "it was asked for")}[
        wanted
    ]
    said = f"Computed by the server's {runner} runner, because {reason}: "
    assert said in capsys.readouterr().out
    assert said.replace("'", "&#39;") in place.page
    assert (place.results.runner["runner"], place.results.runner["reason"]) == (runner, reason)
    assert {"native": "instructions", "transformers": "dtype"}[runner] in place.results.runner


def test_all_models_share_a_runner_that_can_run_the_base(place: Place) -> None:
    artifact = Artifact.open(place.artifact)
    other = Artifact(artifact.path, artifact.lineage, artifact.config | {"hidden_act": "gelu"})
    for own, base in ((artifact, other), (other, artifact)):
        used = compare.common_choices(own, base, "auto")
        assert used[0].value == "transformers"
        assert "its activation is gelu" in used[0].reason or absent()


class Outline(HTMLParser):
    """Collects elements that would load or run something, and checks that elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.open: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attributes}
        if tag in ("script", "link", "img", "iframe") or names & {"src", "href", "srcset"}:
            self.foreign.append(tag)
        self.figures += tag == "figure"
        if tag not in ("meta", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "circle", "rect", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_self_contained_and_escapes_texts(place: Place) -> None:
    place.evaluate('kind = "pairs"\n[gates]\nmax_nll_ratio = 1', ITEMS)
    outline = Outline()
    outline.feed(place.page)
    assert not outline.foreign
    assert not outline.open
    assert outline.figures == 4  # bytes and quality, the layers' sparsity and their errors, and the change by item
    worst = place.results.regressions[0]
    assert f"&lt;What&gt; is {worst.id[1:]}?" in place.page
    assert "<What>" not in place.page
    assert "prefers-color-scheme: dark" in place.page
    assert "@media print" in place.page
    assert "nan" not in place.page.split("<body>")[1]
