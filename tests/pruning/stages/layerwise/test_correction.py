"""Correction before pruning: the formula done slowly, many architectures, kills, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.errors import ModelRefused
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import Overlay
from pruning.passes.observation import count_groups
from pruning.passes.statistics import Gram, InputStatistics
from pruning.passes.sweep import FollowingSweep, Sweep
from pruning.stages.block_weights import block_file
from pruning.stages.inputs import base_artifact
from pruning.stages.layerwise import prune_block
from pruning.stages.layerwise.correction import MASSIVE, Correction, Drift, input_groups, ordinary_tokens, restore_zeros
from pruning.stages.layerwise.prune_block import PruneBlock, prune_weight
from pruning.techniques import Magnitude, SparseGPT
from pruning.techniques.technique import Technique
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

pytestmark = pytest.mark.slow

IDS = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))


def artifact(folder: Path, kind: str = "llama", **changes: Any) -> Artifact:
    return base_artifact(str(tiny.save(folder / "model", kind, **changes)), folder / "cache")


def run(given: Artifact, folder: Path, technique: Technique, strength: float, order: str = "sequential") -> Any:
    """A stock model with what became of the weights."""
    blocks, originals = (Blocks(base.skeleton(given.config), given) for _ in range(2))
    blocks.check(IDS[:2, :8])
    originals.check(IDS[:2, :8])
    folder.mkdir(exist_ok=True)
    sequential = order == "sequential"
    following = FollowingSweep(originals, IDS, 3, folder / "unpruned")
    correction = Correction(strength, following, sequential=sequential) if strength else None
    groups = count_groups(blocks, IDS[:1]) if sequential else 1
    visit = PruneBlock(technique, folder, groups, correction=correction)
    Sweep(blocks, IDS, 3, folder).visit(visit, "pruning", visit.runs)
    source = Overlay(given, [block_file(folder, index) for index in range(len(blocks))])
    return stock(given, {name: source.tensor(name) for name in source.names()})


def stock(given: Artifact, weights: dict[str, Tensor]) -> Any:
    config = AutoConfig.for_model(**given.config)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval()


def inputs_of(model: Any) -> dict[str, Tensor]:
    """What a stock model hands to each of its modules first [sequences, tokens, columns], float64."""
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].double()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or "norm" in name
    ]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def slowly(name: str, weight: Tensor, ours: dict[str, Tensor], theirs: dict[str, Tensor], strength: float) -> Tensor:
    """W* of the linear layer `name` of a Llama, token by token, by the inverse itself, in float64."""
    block = name.rpartition(".")[0].rpartition(".")[0]
    norms = {"o_proj": "input_layernorm", "down_proj": "post_attention_layernorm"}
    dense, size = weight.double(), weight.shape[1]
    states = theirs[f"{block}.input_layernorm"]
    moved, gram = torch.zeros(weight.shape, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for sequence in range(len(IDS)):
        median = states[sequence].norm(dim=-1).median()
        for token in range(IDS.shape[1]):
            own, other = ours[name][sequence, token], theirs[name][sequence, token]
            gram += torch.outer(own, own)
            if states[sequence, token].norm() > 10 * median:
                continue
            missing = dense @ (other - own)
            if norm := norms.get(name.rpartition(".")[2]):
                missing += theirs[f"{block}.{norm}"][sequence, token] - ours[f"{block}.{norm}"][sequence, token]
            moved += torch.outer(missing, own)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    return dense + strength * moved @ damped.inverse()


@pytest.mark.parametrize("order", ["sequential", "block"])
def test_weights_are_those_of_the_formula_done_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """What is pruned is W*, of inputs that a stock model of the weights pruned till then has."""
    given, seen = artifact(tmp_path), list[Tensor]()

    def spy(weight: Tensor, technique: Technique, observed: InputStatistics) -> None:
        seen.append(weight.clone())
        prune_weight(weight, technique, observed)

    monkeypatch.setattr(prune_block, "prune_weight", spy)
    result = run(given, tmp_path / "work", SparseGPT("2:4"), 0.5, order)
    dense = {name: given.tensor(name).float() for name in given.names()}
    pruned, theirs = result.state_dict(), inputs_of(stock(given, dense))
    names = [name for name in theirs if name.endswith("_proj")]
    assert len(names) == len(seen) == 14
    for number, (name, corrected) in enumerate(zip(names, seen, strict=True)):
        block = int(name.split(".")[2])
        before = names[:number] if order == "sequential" else [n for n in names if int(n.split(".")[2]) < block]
        weights = dense | {f"{n}.weight": pruned[f"{n}.weight"] for n in before}
        expected = slowly(name, dense[f"{name}.weight"], inputs_of(stock(given, weights)), theirs, 0.5)
        torch.testing.assert_close(corrected.double(), expected, rtol=1e-3, atol=1e-5)
    first, later = (dense[f"{names[i]}.weight"] for i in (0, 7))
    assert torch.equal(seen[0], first)
    assert (seen[7] - later).norm() > 0.01 * later.norm()


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
@pytest.mark.parametrize("order", ["sequential", "block"])
def test_correction_brings_every_architecture_nearer_to_its_original(tmp_path: Path, kind: str, order: str) -> None:
    """Its states after the last block, on the calibration itself."""
    given = artifact(tmp_path, kind)
    path = Blocks(base.skeleton(given.config), given).path
    unpruned = stock(given, {name: given.tensor(name).float() for name in given.names()})
    dense = tiny.after_last_block(unpruned, path, IDS)
    off = []
    for strength in (0.0, 0.5):
        pruned = run(given, tmp_path / f"{strength}", Magnitude(0.5), strength, order)
        off.append(float((tiny.after_last_block(pruned, path, IDS) - dense).norm()))
    assert off[1] < 0.95 * off[0]


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_a_correction_never_increases_the_output_error(strength: float) -> None:
    """On the tokens that count; the others are in H alone, which only shortens the step."""
    generator = torch.Generator().manual_seed(int(10 * strength))
    weight = torch.randn(6, 10, generator=generator)
    for scale in (0.01, 0.3, 3.0):
        theirs = torch.randn(4, 20, 10, generator=generator)
        ours = theirs + scale * torch.randn(4, 20, 10, generator=generator)
        off = scale * torch.randn(80, 6, generator=generator)
        counts = torch.rand(80, generator=generator) < 0.9
        drift, gram = Drift(10), Gram(10)
        for part in (slice(0, 3), slice(3, 4)):  # two batches
            rows = slice(20 * part.start, 20 * part.stop)
            drift.update(ours[part], theirs[part], {"w": off[rows]}, counts[rows])
            gram.update(ours[part])
        corrected = weight + strength * drift.correction("w", weight, gram)
        wanted = theirs.flatten(0, 1) @ weight.T + off
        before, after = ((ours.flatten(0, 1) @ w.T - wanted)[counts].square().sum() for w in (weight, corrected))
        assert after < before


def test_restored_zeros_are_compensated_by_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    inputs[:, 5] = 0  # a dead feature
    gram = Gram(24)
    gram.update(inputs[None])
    weight, moved = (torch.randn(6, 24, generator=generator) for _ in range(2))
    weight[:, ::2] = 0
    found = restore_zeros(weight, moved, gram)
    assert torch.equal(found == 0, weight == 0)
    damped = gram.value.double()
    damped.diagonal()[5] = 1
    damped += 0.01 * damped.diagonal().diag()
    for row in range(6):
        free = weight[row] != 0
        best = torch.linalg.solve(damped[free][:, free], (damped @ moved[row].double())[free])
        torch.testing.assert_close(found[row][free].double(), best, rtol=2e-2, atol=2e-2)


def test_tokens_with_massive_activations_are_those_far_above_the_median_of_their_sequence() -> None:
    states = torch.ones(2, 5, 4)
    states[0, 0] *= 9.9
    states[0, 3] *= 10.1
    states[1] *= 1000  # all of a sequence: none stands out
    assert (~ordinary_tokens(states)).nonzero().flatten().tolist() == [3]
    assert MASSIVE == 10


def test_massive_tokens_do_not_move_the_correction() -> None:
    ours, counts = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)), torch.ones(6, dtype=torch.bool)
    theirs = ours.clone()
    theirs[0, 2] += 100
    drifts = [Drift(4), Drift(4)]
    drifts[0].update(ours, theirs, {}, counts)
    counts[2] = False
    drifts[1].update(ours, theirs, {}, counts)
    gram = Gram(4)
    gram.update(ours)
    moved = [float(drift.correction("w", torch.eye(4), gram).norm()) for drift in drifts]
    assert moved[0] > 1
    assert moved[1] == 0


class Experts(nn.Module):
    """A block whose second layer sees some of the tokens, or whose first is called twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.twice = nn.Linear(8, 8), nn.Linear(8, 8), twice

    def forward(self, states: Tensor) -> Tensor:
        again = self.first(states) if self.twice else states
        result: Tensor = self.first(again) + nn.functional.pad(self.second(states[:, ::2]), (0, 0, 0, 3))
        return result


def test_the_widest_inputs_are_pruned_after_the_other_block_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct, beside = Correction.correct, set()

    def see(self: Correction, name: str, weight: Tensor, observed: InputStatistics, *, keep_zeros: bool) -> None:
        blocks = self._originals.blocks
        if not all(parameter.is_meta for parameter in blocks.model.get_submodule(blocks.path).parameters()):
            beside.add(name.rpartition(".")[0].rpartition(".")[2])
        correct(self, name, weight, observed, keep_zeros=keep_zeros)

    monkeypatch.setattr(Correction, "correct", see)
    run(artifact(tmp_path), tmp_path / "pruned", Magnitude(0.5), 0.5)
    assert beside == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}


@pytest.mark.parametrize(
    ("twice", "sentence"),
    [
        (True, "first is called more than once in a block: use"),
        (False, "second does not see every token, so it cannot be compared"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(twice: bool, sentence: str) -> None:
    block, states = Experts(twice), torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    view = Mock(linears={"first": block.first, "second": block.second}, first=slice(0, 2))
    view.before.return_value = states
    view.sample.side_effect = lambda: block(states)
    with torch.no_grad(), pytest.raises(ModelRefused, match=sentence):
        list(input_groups(view))


STAGE = """
[[stages]]
kind = "layerwise"
order = "sequential"
correction = 0.5
technique = { name = "sparsegpt", sparsity = "2:4" }
"""


def test_a_killed_run_goes_on_to_the_same_artifact(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in a block, and between a block of the unpruned model and the journal; with states lost in between."""

    def command(name: str) -> int:
        return main(
            ["prune", str(recipe(STAGE)), "--output", str(tmp_path / name), "--base-cache", str(tmp_path / "base")]
        )

    assert command("whole") == 0
    original, calls = PruneBlock.__call__, [0]

    def dying(self: PruneBlock, view: Any) -> Any:
        calls[0] += 1
        note = original(self, view)
        if calls[0] in (2, 4):
            raise KeyboardInterrupt
        return note

    monkeypatch.setattr(PruneBlock, "__call__", dying)
    assert command("killed") == 130
    for states in (tmp_path / "killed.work" / "stage-0" / "unpruned").glob("states-*"):
        states.unlink()
    assert command("killed") == 130
    for states in (tmp_path / "killed.work" / "stage-0").glob("states-*"):
        states.unlink()
    assert command("killed") == 0
    whole, killed = (Artifact.open(tmp_path / name) for name in ("whole", "killed"))
    assert [step.digest for step in whole.lineage.steps] == [step.digest for step in killed.lineage.steps]
    assert {"correction": 0.5, "order": "sequential"}.items() <= whole.lineage.steps[0].options.items()


def test_a_strength_that_overfits_warns(
    recipe: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for strength, said in (("0.5", False), ("0.6", True)):
        caplog.clear()
        path = recipe(STAGE.replace("0.5", strength))
        assert (
            main(["prune", str(path), "--output", str(tmp_path / strength), "--base-cache", str(tmp_path / "base")])
            == 0
        )
        assert ("correction = 0.6 is likely to overfit: compare the result with 0.5" in caplog.text) is said


def test_a_strength_above_1_is_refused(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(STAGE.replace("0.5", "1.5"))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 2
    assert "Expected `float` <= 1.0 - at `$.stages[0].correction`" in capsys.readouterr().err
