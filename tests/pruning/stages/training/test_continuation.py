"""Dynamic batch loading against its formula; continued pre-training: result, record, refusals, resumption."""

import hashlib
import re
from collections.abc import Callable
from math import exp
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.errors import DataError, RecipeError
from pruning.recipe.recipe import read
from pruning.recipe.training import Continue, Domain
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs, prepare
from pruning.stages.training import run
from pruning.stages.training.continuation import Continuation, apply
from pruning.stages.training.data import draw_domain_data
from pruning.stages.training.mixture import DomainMixture, reweigh, sequence
from pruning.stages.training.network import Precision
from server.artifact.checkpoint.lineage import Recovery
from tests.pruning.stages.training.conftest import kill_once, stopped_at

STAGE = Continue(
    tokens=1024,
    length=32,
    batch=4,
    interval=2,
    held_out=4,
    learning_rate=2e-3,
    domains=(Domain("low", buckets=(0, 1, 2)), Domain("high", buckets=(3, 4, 5, 6), weight=3.0)),
)  # eight steps
RECIPE = """
[[stages]]
kind = "shear"
tokens = 512
length = 32
batch = 4
interval = 1
held_out = 4
hidden = 48
ffn = 96
[[stages]]
kind = "continue"
tokens = 512
length = 32
batch = 4
interval = 1
held_out = 4
domains = [{ name = "low", buckets = [0, 1, 2] }, { name = "other", source = "OTHER", buckets = [3, 4, 5] }]
"""


def go_on(stage: Continue, model: StageModel, inputs: Inputs, folder: Path) -> tuple[StageModel, Recovery]:
    result, step = apply(stage, model, StageContext(inputs, folder))
    assert step.technique == "continue"
    assert step.recovery is not None
    return result, step.recovery


def grown(weights: list[float], losses: list[float], reference: list[float]) -> list[float]:
    """Algorithm 1 of the paper, lines 8 to 10, done slowly."""
    raised = [w * exp(max(now - aim, 0)) for w, now, aim in zip(weights, losses, reference, strict=True)]
    return [value / sum(raised) for value in raised]


def test_a_domain_above_its_reference_gains_and_one_below_does_not_lose() -> None:
    weights, loss, reference = torch.tensor([[0.5, 0.3, 0.2], [2.0, 3.0, 1.0], [1.5, 3.0, 4.0]]).double()
    expected = grown(weights.tolist(), loss.tolist(), reference.tolist())
    assert reweigh(weights, loss, reference).tolist() == pytest.approx(expected)
    assert expected[1] / expected[2] == pytest.approx(0.3 / 0.2)
    assert torch.equal(reweigh(weights, reference, reference), weights / weights.sum())


def test_shares_change_with_every_score_but_the_first() -> None:
    mixture = DomainMixture(reference=(1.0, 2.0), weights=(0.5, 0.5), read=(0, 0)).updated((3.0, 3.0))
    assert mixture.weights == (0.5, 0.5)
    for losses in ((2.0, 1.5), (1.5, 2.5)):
        expected = grown(list(mixture.weights), list(losses), [1.0, 2.0])
        mixture = mixture.updated(losses)
        assert mixture.weights == pytest.approx(expected)
    assert mixture.losses == ((3.0, 3.0), (2.0, 1.5), (1.5, 2.5))


def test_sequences_are_drawn_in_proportion_and_each_domain_is_read_in_order() -> None:
    mixture = DomainMixture(reference=(0.0, 0.0), weights=(0.8, 0.2), read=(0, 5))
    drawn: list[tuple[int, int]] = []
    for step in range(250):
        more, mixture = mixture.draw(4, f"0, {step}")
        drawn += more
    assert [number for domain, number in drawn if domain == 0] == list(range(mixture.read[0]))
    assert [number for domain, number in drawn if domain == 1] == list(range(5, mixture.read[1]))
    assert mixture.read[0] == pytest.approx(800, abs=50)  # 4 standard errors


def test_repeated_texts_are_reshuffled() -> None:
    ids = torch.arange(20).view(10, 2)
    readings = [[int(sequence(ids, number, seed=3)[0]) for number in range(k, k + 10)] for k in (0, 10, 20)]
    assert readings[0] == ids[:, 0].tolist()
    assert [sorted(reading) for reading in readings] == [readings[0]] * 3
    assert readings[0] != readings[1] != readings[2]


def test_training_improves_keeps_zeros_and_is_recorded(
    halved: StageModel, inputs: Inputs, model: Path, tmp_path: Path
) -> None:
    result, record = go_on(STAGE, halved, inputs, tmp_path)
    assert not record.rolled_back
    assert record.after < 0.98 * record.before
    for name in halved.source.names():
        before, after = halved.source.tensor(name), result.source.tensor(name)
        assert torch.equal(before == 0, after == 0), name
        assert not torch.equal(before, after), name
    low, high = record.domains
    assert record.tokens == low.tokens + high.tokens == 1024
    assert record.flops == 6 * 1024 * 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64)
    assert record.before == pytest.approx(0.25 * low.before + 0.75 * high.before)
    assert record.after == pytest.approx(0.25 * low.after + 0.75 * high.after)
    assert (low.name, low.held_out.sequences, record.held_out.sequences) == ("low", 4, 8)
    assert low.weight + high.weight == pytest.approx(1)
    assert msgspec.json.decode(msgspec.json.encode(record), type=Recovery) == record


def test_the_reference_is_the_loss_of_the_base(
    halved: StageModel, inputs: Inputs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "choose_precision", lambda device: Precision(torch.float32, "exact"))
    _, record = go_on(msgspec.structs.replace(STAGE, tokens=128), halved, inputs, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for domain, data in zip(record.domains, draw_domain_data(STAGE, inputs), strict=True):
        with torch.no_grad():
            losses = [stock(input_ids=ids[None], labels=ids[None]).loss for ids in data.held_out]
        assert domain.reference == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_shares_follow_the_losses_of_the_run(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtures: list[DomainMixture] = []
    begin, keep = Continuation._begin, Continuation._keep

    def aim_lower(self: Continuation) -> None:
        begin(self)
        low, high = self._mixture.losses[0]
        mixture = msgspec.structs.replace(self._mixture, reference=(low - 0.5, high - 1.5))
        self._state = msgspec.structs.replace(self._state, mixture=mixture)

    def watch(self: Continuation, step: int) -> None:
        keep(self, step)
        mixtures.append(self._mixture)

    monkeypatch.setattr(Continuation, "_begin", aim_lower)
    monkeypatch.setattr(Continuation, "_keep", watch)
    go_on(STAGE, halved, inputs, tmp_path)
    assert [sum(mixture.read) for mixture in mixtures] == [8, 16, 24, 32]
    weights = [0.25, 0.75]
    for mixture in mixtures:
        weights = grown(weights, list(mixture.losses[-1]), list(mixture.reference))
        assert mixture.weights == pytest.approx(weights)
    assert weights[1] > 0.9


def test_a_run_that_scores_worse_is_rolled_back_and_says_so(
    halved: StageModel, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, record = go_on(msgspec.structs.replace(STAGE, learning_rate=1.0, tokens=512), halved, inputs, tmp_path)
    assert record.rolled_back
    assert "training is rolled back: mean negative log-likelihood" in caplog.text
    assert result == halved


@pytest.mark.parametrize("when", [2, 8])
def test_a_stopped_run_resumes_from_the_last_interval(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    whole, expected = go_on(STAGE, halved, inputs, tmp_path / "whole")
    steps = stopped_at(monkeypatch, Continuation, when)
    with pytest.raises(KeyboardInterrupt):
        go_on(STAGE, halved, inputs, tmp_path / "cut")
    result, record = go_on(STAGE, halved, inputs, tmp_path / "cut")
    assert steps == [*range(1, when + 1), *range((when - 1) // 2 * 2 + 1, 9)]
    assert all(torch.equal(whole.source.tensor(name), result.source.tensor(name)) for name in whole.source.names())
    assert record == expected


def test_domains_that_share_texts_are_refused(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    stage = msgspec.structs.replace(STAGE, domains=(Domain("all"), Domain("some", buckets=(2, 9))))
    with pytest.raises(RecipeError, match=r"the domains all and some share texts of .*: give them disjoint buckets"):
        apply(stage, halved, StageContext(inputs, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("buckets", "sentence"),
    [("buckets = [0, 1]", "share texts of .*: give them disjoint buckets"), ('source = "self"', "other sources")],
)
def test_they_are_refused_before_any_earlier_stage_runs(
    buckets: str, sentence: str, recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = f'[{{ name = "a", {buckets} }}, {{ name = "b", {buckets} }}]'
    stage = f'[[stages]]\nkind = "continue"\ntokens = 100\ndomains = {domains}\n'
    path = recipe(f'[[stages]]\nkind = "depth"\nremove = 1\n{stage}')
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "out.work" / "stage-0").exists(), "the first stage was begun"


def test_too_few_texts_in_a_domain_are_refused(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in the buckets \[0, 1, 2\]: too few to hold out 400 x 32 tokens"):
        apply(msgspec.structs.replace(STAGE, held_out=400), halved, StageContext(inputs, tmp_path))


@pytest.mark.parametrize(
    ("domains", "sentence"),
    [
        ("[]", "Expected `array` of length >= 1 - at `$.stages[0].domains`"),
        ('[{ name = "a", buckets = [1] }, { name = "a", buckets = [2] }]', "two domains are named a"),
        ('[{ name = "a", weight = 0 }]', "Expected `float` > 0.0 - at `$.stages[0].domains[0].weight`"),
        (
            '[{ name = "a", sorce = "x" }]',
            "unknown field `sorce` - at `$.stages[0].domains[0]`; allowed: buckets, name",
        ),
        ('[{ name = "a", source = "none.txt" }]', "none.txt does not exist"),
    ],
)
def test_a_mistake_in_the_domains_is_refused_in_one_sentence(
    domains: str, sentence: str, recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(f'[[stages]]\nkind = "continue"\ntokens = 100\ndomains = {domains}\n')
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.work").exists()


def test_an_artifact_depends_on_the_texts_of_every_domain(
    recipe: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text())
    path = recipe(RECIPE.replace("OTHER", str(other)))
    first = prepare(read(path), tmp_path / "base").identity
    assert first.keys() > {f"text {text}", f"text {other}"}
    other.write_text(text.read_text().replace("times", "by"))
    second = prepare(read(path), tmp_path / "base").identity
    assert {key for key in first if first[key] != second[key]} == {f"text {other}"}


def test_killed_after_the_cut_it_ends_with_the_identical_artifact(
    recipe: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text())
    path, cache = recipe(RECIPE.replace("OTHER", str(other))), str(tmp_path / "base")
    assert main(["prune", str(path), "--output", str(tmp_path / "whole"), "--base-cache", cache]) == 0
    arguments = ["prune", str(path), "--output", str(tmp_path / "cut"), "--base-cache", cache]
    kill_once(tmp_path / "cut.work" / "stage-1" / "state.safetensors", arguments)
    assert not (tmp_path / "cut").exists(), "it was to be killed in the middle"
    assert main(arguments) == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert hashlib.sha256(whole).digest() == hashlib.sha256(cut).digest()
