"""AWQ: folds found by trial in many architectures, the paper's choice of scale done slowly, and the whole stage."""

from collections.abc import Mapping
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.passes.observation import observing
from pruning.passes.statistics import Gram
from pruning.passes.sweep import BlockView, Sweep
from pruning.recipe.options import AWQ
from pruning.recipe.recipe import read
from pruning.stages.inputs import base_artifact, prepare
from pruning.stages.layerwise.awq import MeanMagnitude, choose_scale
from pruning.stages.layerwise.folding import Fold, FoldFinder
from pruning.techniques.mathematics.rounding import round_groups
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny
from tests.pruning.conftest import RECIPE
from tests.reference import slow_rounding

pytestmark = pytest.mark.slow

IDS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))
PARTS = slice(0, 32), slice(32, 64)
FULL_HEADS = {"num_key_value_heads": 4}


def folds(folder: Path, kind: str, **changes: int) -> dict[str, str | None]:
    """Where the scales of each layer of the last block go, by the last part of the layer's name."""
    artifact = base_artifact(str(tiny.save(folder / kind, kind, **changes)), folder / "cache")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    found: dict[str, str | None] = {}
    folder_of = FoldFinder(folder / "failed.json")

    def visit(view: BlockView) -> dict[str, str]:
        found.clear()
        with observing(view.linears, (Gram,)) as observed:
            view.run()
        for statistics in set(observed.values()):
            users = {name: view.linears[name] for name in observed if observed[name] is statistics}
            before = view.sample()
            fold = folder_of.find(view, users)
            assert torch.equal(view.sample(), before), "a trial leaves the block as it was"
            found.update({name.split(".")[-2]: fold.name if fold else None for name in users})
        view.advance()
        return {}

    Sweep(blocks, IDS, 2, folder / "sweep").visit(visit, "folding", 2)
    return found


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, {"q_proj": "input_layernorm", "up_proj": "post_attention_layernorm", "o_proj": None}),
        ("llama", FULL_HEADS, {"o_proj": "self_attn.v_proj", "down_proj": "mlp.up_proj"}),
        ("gemma2", {}, {"gate_proj": "pre_feedforward_layernorm", "down_proj": "mlp.up_proj"}),
        ("olmo", {}, {"q_proj": None, "down_proj": "mlp.up_proj"}),
        ("gpt2", {}, {"c_attn": "ln_1", "c_fc": "ln_2"}),
        ("opt", {}, {"q_proj": "self_attn_layer_norm", "out_proj": "self_attn.v_proj", "fc2": "fc1"}),
        ("phi3", {}, {"qkv_proj": "input_layernorm", "down_proj": None}),
    ],
)
def test_exactly_the_valid_folds_are_found(
    tmp_path: Path, kind: str, changes: dict[str, int], expected: dict[str, str | None]
) -> None:
    found = folds(tmp_path, kind, **changes)
    assert {name: found[name] for name in expected} == expected


def test_no_feature_is_lost_in_a_norm_with_offset() -> None:
    norm = nn.LayerNorm(64, elementwise_affine=True, bias=False)
    norm.weight.data = torch.linspace(-1, 1, 64).bfloat16().float()
    before, wanted = norm.weight.data + 1, torch.logspace(-2, 2.5, 64).flip(0)
    scale = Fold("norm", norm, 1.0).divide(wanted)
    torch.testing.assert_close((norm.weight.data + 1) * scale, before)
    assert torch.equal(norm.weight.data, norm.weight.data.bfloat16().float())
    assert (scale[32:] / wanted[32:]).log().abs().max() < 0.01, "else as it was asked for"


def test_a_linear_layer_is_divided_with_its_bias() -> None:
    linear = nn.Linear(6, 8)
    linear.bias.data = linear.bias.data.bfloat16().float()
    inputs, scale = torch.randn(5, 6), 2 ** torch.arange(-4.0, 4)  # powers of two, which no rounding touches
    expected = linear(inputs) / scale
    assert torch.equal(Fold("linear", linear).divide(scale), scale)
    torch.testing.assert_close(linear(inputs), expected)


def outliers() -> tuple[Tensor, Tensor]:
    """A weight [rows, columns], and inputs [tokens, columns] of which some columns are large."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(300, 64, generator=generator)
    inputs[:, ::9] *= 20
    return torch.randn(10, 64, generator=generator), inputs


def error(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    return float(((weight - rounded).double() @ inputs.double().T).square().sum())


def test_the_scale_is_the_one_of_the_papers_grid() -> None:
    weight, inputs = outliers()
    magnitude = MeanMagnitude(64)
    for batch in inputs.view(3, 2, 50, 64):
        magnitude.update(batch)
    gram = Gram(64)
    gram.update(inputs)
    chosen = choose_scale(weight, gram.value, magnitude.value, AWQ(bits=3, group=32))
    plain, rows = weight.double().numpy(), inputs.double().numpy()
    mean = numpy.abs(rows).mean(axis=0)
    results = []
    for step in range(20):
        scale = mean ** (step / 20)
        scale = scale / (scale.max() * scale.min()) ** 0.5
        rounded = numpy.zeros_like(plain)
        for i in range(10):
            for start in (0, 32):
                part = slice(start, start + 32)
                largest = max(abs(plain[i, part] * scale[part])) / 3
                rounded[i, part] = [min(max(round(w / largest), -4), 3) * largest for w in plain[i, part] * scale[part]]
        results.append((float((((plain - rounded / scale) @ rows.T) ** 2).sum()), step, scale))
    _, step, expected = min(results, key=lambda result: result[0])
    assert 0 < step < 19
    torch.testing.assert_close(chosen.double(), torch.from_numpy(expected), rtol=1e-4, atol=0)


def test_with_input_outliers_scaling_beats_rounding_alone() -> None:
    weight, inputs = outliers()
    gram = Gram(64)
    gram.update(inputs)
    importance = gram.value.diagonal()
    alone, scaled = weight.clone(), weight.clone()
    round_groups(alone, importance, 3, 32)
    scale = choose_scale(weight, gram.value, inputs.abs().mean(dim=0), AWQ(bits=3, group=32))
    scaled *= scale
    scales = round_groups(scaled, importance / scale.square(), 3, 32)
    assert scales.shape == (10, 2)
    assert error(weight, scaled / scale, inputs) < 0.9 * error(weight, alone, inputs)


def test_the_stage_keeps_zeros_and_needs_no_new_tensors(
    tmp_path: Path, text: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = (
        '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = "32:64" }\n',
        '[[stages]]\nkind = "awq"\ngroup = 32\n',
    )
    artifacts = []
    for count in (1, 2):
        recipe, output = tmp_path / "recipe.toml", tmp_path / f"out{count}"
        recipe.write_text(RECIPE.format(model=model, text=text, stages="".join(stages[:count])))
        assert main(["prune", str(recipe), "--output", str(output), "--base-cache", str(tmp_path / "base")]) == 0
        artifacts.append(Artifact.open(output))
    pruned, quantised = artifacts
    assert quantised.names() == pruned.names()
    step = quantised.lineage.steps[1]
    assert (step.technique, step.options) == ("awq", {"bits": 4, "group": 32, "scheme": "symmetric"})
    assert len(step.sparsity) == 6 * 7
    for name in step.sparsity:
        assert not quantised.tensor(name)[pruned.tensor(name) == 0].any()
        assert isinstance(quantised.layout(name), Quantised)
    norm = "model.layers.3.input_layernorm.weight"
    assert not torch.equal(quantised.tensor(norm), pruned.tensor(norm))
    [said] = [message for message in caplog.messages if "rounded unscaled" in message]
    assert said.startswith("6 layers, such as model.layers.0.self_attn.o_proj.weight, are rounded unscaled")
    before, after = pruned.lineage.evaluation, quantised.lineage.evaluation
    assert before is not None
    assert after is not None
    assert after.perplexity["pruned"] == pytest.approx(before.perplexity["pruned"], rel=0.02)


def test_scales_are_searched_by_the_squares_of_the_inputs_after_the_fold(
    tmp_path: Path, text: Path, model: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=model, text=text, stages='[[stages]]\nkind = "awq"\ngroup = 32\n'))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 0
    artifact, ids = Artifact.open(tmp_path / "out"), prepare(read(path), tmp_path / "base").calibration[0]
    norm, query = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    scale = stock.get_parameter(norm).detach() / artifact.tensor(norm).float()
    assert float(scale.max() / scale.min()) > 1.2, "something was folded"
    scaled = (stock.get_parameter(query).detach() * scale).double()
    stock.get_parameter(norm).data.copy_(artifact.tensor(norm))
    seen: list[Tensor] = []
    stock.get_submodule(query.removesuffix(".weight")).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        stock(input_ids=ids)
    importance = seen[0].flatten(0, 1).double().square().mean(dim=0)
    found = artifact.scales(query)
    assert found is not None
    expected = [
        [slow_rounding.scale_of(scaled[row, part].tolist(), importance[part].tolist(), 4) for part in PARTS]
        for row in range(16)
    ]
    same = (found[:16].double() - torch.tensor(expected).double()).abs() < 1e-3 * found[:16].double().abs()
    assert same.double().mean() > 0.9, "but for ties within rounding"


def test_folding_scales_leaves_the_model_unchanged(tmp_path: Path) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "gemma", "gemma")), tmp_path / "cache")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    differences: list[float] = []

    def visit(view: BlockView) -> dict[str, str]:
        users = {
            name: module
            for name, module in view.linears.items()
            if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
        }
        fold = FoldFinder(tmp_path / "failed.json").find(view, users)
        assert fold is not None
        assert fold.offset == 1
        before = view.sample()
        scale = fold.divide(torch.linspace(0.3, 3, 64))
        for user in users.values():
            user.get_parameter("weight").data.mul_(scale)
        differences.append(float((view.sample() - before).abs().max() / before.abs().max()))
        view.advance()
        return {}

    Sweep(blocks, IDS, 2, tmp_path / "sweep").visit(visit, "folding", 1)
    assert max(differences) < 1e-5


def test_stopped_in_the_middle_it_ends_with_the_identical_artifact(
    tmp_path: Path, text: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, text=text, stages='[[stages]]\nkind = "awq"\n'))

    def prune(name: str) -> int:
        arguments = ["prune", str(recipe), "--output", str(tmp_path / name), "--base-cache", str(tmp_path / "base")]
        return main(arguments)

    assert prune("whole") == 0
    original = FoldFinder.find

    def find(self: FoldFinder, view: BlockView, users: Mapping[str, nn.Module]) -> Fold | None:
        if view.index == 3 and any("down_proj" in name for name in users):
            raise KeyboardInterrupt
        return original(self, view, users)

    with monkeypatch.context() as patch:
        patch.setattr(FoldFinder, "find", find)
        assert prune("stopped") == 130
    memory = tmp_path / "stopped.work" / "stage-0" / "folds-failed.json"
    assert FoldFinder(memory)._failed, "what failed is remembered over the stop"
    assert prune("stopped") == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
