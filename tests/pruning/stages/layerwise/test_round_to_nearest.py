"""Quantising stages from recipe to artifact: codes and zeros are stored as chosen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.passes.sweep import BlockView, Note, pass_on
from pruning.recipe.options import Round
from pruning.recipe.recipe import read as read_recipe
from pruning.stages.inputs import prepare
from pruning.stages.layerwise.head import DAMPING
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny
from tests.pruning.conftest import RECIPE
from tests.reference import slow_rounding

pytestmark = pytest.mark.slow

STAGE = '[[stages]]\nkind = "layerwise"\ntechnique = { %s }\n'
SPARSEGPT = STAGE % 'name = "sparsegpt", sparsity = "32:64"'
GPTQ = STAGE % 'name = "gptq"'

Prune = Callable[..., Artifact]


@pytest.fixture
def prune(tmp_path: Path, model: Path, text: Path) -> Prune:
    """Carries out a recipe with the given stages."""

    def run(stages: str, base: Path = model) -> Artifact:
        recipe, output = tmp_path / "recipe.toml", tmp_path / "out"
        recipe.write_text(RECIPE.format(model=base, text=text, stages=stages))
        assert main(["prune", str(recipe), "--output", str(output), "--base-cache", str(tmp_path / "base")]) == 0
        return Artifact.open(output)

    return run


@pytest.mark.parametrize("more", ["", 'order = "sequential"\ncorrection = 0.5\n'])
def test_quantising_a_pruned_model_keeps_its_zeros(prune: Prune, more: str) -> None:
    pruned = {name: tensor != 0 for name, tensor in prune(SPARSEGPT).tensors()}
    artifact = prune(SPARSEGPT + GPTQ + more)
    first, second = artifact.lineage.steps
    assert second.technique == "gptq"
    assert {"bits": 4, "group": 64, "scheme": "symmetric"}.items() <= second.options.items()
    assert len(second.sparsity) == 6 * 7
    for name in second.sparsity:
        assert first.sparsity[name] == 0.5
        tensor = artifact.tensor(name)
        assert not tensor[~pruned[name]].any()
        assert tensor.any()
        layout = artifact.layout(name)
        assert isinstance(layout, Quantised)
        assert (layout.bits, layout.group, layout.keep) == (4, 64, 32)


@pytest.mark.parametrize(("technique", "bits"), [('bits = 8, sparsity = "16:64"', 8), ('sparsity = "2:4"', 4)])
def test_a_transposed_layer_is_quantised_along_its_inputs(
    prune: Prune, tmp_path: Path, technique: str, bits: int
) -> None:
    artifact = prune(STAGE % f'name = "gptq", group = 32, {technique}', tiny.save(tmp_path / "gpt2", "gpt2"))
    weight = artifact.tensor("transformer.h.0.mlp.c_fc.weight")
    assert weight.shape == (64, 256)
    keep = 16 if bits == 8 else 32
    layout = Quantised(bits=bits, group=32, columns=64, keep=keep, transposed=True)  # type: ignore[arg-type]
    assert artifact.layout("transformer.h.0.mlp.c_fc.weight") == layout
    assert (weight != 0).sum(dim=0).max() == keep
    assert artifact.lineage.evaluation is not None
    assert artifact.lineage.evaluation.bytes["pruned"] < artifact.lineage.evaluation.bytes["dense"]


def test_each_value_is_an_integer_times_its_scale(prune: Prune) -> None:
    artifact = prune(GPTQ)
    name = "model.layers.3.mlp.down_proj.weight"
    scales = artifact.scales(name)
    assert scales is not None
    assert scales.shape == (64, 2)
    steps = artifact.tensor(name).double() / scales.double().repeat_interleave(64, dim=1)
    assert ((steps - steps.round()).abs() <= steps.abs() / 256).all()  # what bfloat16 rounds away
    assert set(steps.round().flatten().tolist()) == set(range(-8, 8))


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["gptq", "awq", "round"])
def test_asymmetric_codes_are_stored_with_their_minimums(prune: Prune, kind: str, bits: int) -> None:
    options = f'bits = {bits}, group = 32, scheme = "asymmetric"'
    stage = f'[[stages]]\nkind = "{kind}"\n' + options.replace(", ", "\n") + "\n"
    stage += 'what = "blocks"\n' if kind == "round" else ""
    artifact = prune(STAGE % f'name = "gptq", {options}' if kind == "gptq" else stage)
    name = "model.layers.3.mlp.down_proj.weight"
    layout, grid = artifact.layout(name), artifact.scales(name)
    assert layout == Quantised(bits=bits, group=32, columns=128, asymmetric=True)  # type: ignore[arg-type]
    assert grid is not None
    assert grid.shape == (64, 4, 2)
    scales, minimums = grid.double().repeat_interleave(32, dim=1).unbind(2)
    codes = (artifact.tensor(name).double() - minimums) / scales
    assert ((codes - codes.round()).abs() < 0.2).all()  # what bfloat16 rounds away
    assert set(codes.round().flatten().tolist()) == set(range(1 << bits))
    assert artifact.lineage.steps[0].options["scheme"] == "asymmetric"


def test_pruning_quantised_weights_warns(prune: Prune, caplog: pytest.LogCaptureFixture) -> None:
    artifact = prune(GPTQ + STAGE % 'name = "wanda", sparsity = "8:64"')
    assert "42 quantised weights are at 16 bits again, model.layers.0." in caplog.text
    name = "model.layers.0.mlp.up_proj.weight"
    assert artifact.scales(name) is None
    assert torch.count_nonzero(artifact.tensor(name)) <= 128 * 8


@pytest.mark.parametrize(("kind", "tied", "bits"), [("llama", False, 4), ("llama", True, 8), ("gpt2", True, 4)])
def test_embeddings_and_head_are_rounded_and_a_tied_head_only_once(
    prune: Prune, tmp_path: Path, kind: str, tied: bool, bits: int
) -> None:
    base = tiny.save(tmp_path / kind, kind, tie_word_embeddings=tied)
    artifact = prune(f'[[stages]]\nkind = "round"\nbits = {bits}\ngroup = 32\n', base)
    expected = {
        "llama": {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"}),
        "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    }
    quantised = {name for name in artifact.names() if artifact.scales(name) is not None}
    assert quantised == set(artifact.lineage.steps[0].sparsity) == expected[kind]
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name in quantised:
        layout, scales = artifact.layout(name), artifact.scales(name)
        assert isinstance(layout, Quantised)
        assert scales is not None
        assert (layout.bits, layout.group) == (bits, 32)
        for row in (0, 77):
            values = before[name][row, :32].tolist()
            scale = slow_rounding.scale_of(values, [1.0] * 32, bits)
            assert scales[row, 0].item() == pytest.approx(scale, rel=1e-3)
            codes = [slow_rounding.code(value, scales[row, 0].item(), bits) for value in values]
            steps = artifact.tensor(name)[row, :32].float() / scales[row, 0].float()
            assert (steps.round() == torch.tensor(codes)).all()


def test_rounded_embeddings_can_be_evaluated_and_pass_other_stages(
    prune: Prune, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stages = '[[stages]]\nkind = "round"\n' + GPTQ + '[[stages]]\nkind = "depth"\nremove = 1\n'
    artifact = prune(stages, tiny.save(tmp_path / "tied", num_hidden_layers=3, tie_word_embeddings=True))
    assert "16 bits again" not in caplog.text
    layout = artifact.layout("model.embed_tokens.weight")
    assert layout == Quantised(bits=8, group=64, columns=64)
    stored = load_file(artifact.path / "model.safetensors")
    assert sum(part.nbytes for name, part in stored.items() if "embed" in name) == 257 * (64 + 2)
    capsys.readouterr()
    command = ["evaluate", str(artifact.path), "--source", str(text), "--tokens", "128", "--window", "32"]
    assert main(command) == 0
    shown = float(capsys.readouterr().out.split()[-1])
    assert shown > 1
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[-1]
    assert (told["name"], told["perplexity"]) == (str(artifact.path), pytest.approx(shown, abs=1e-4))


def test_blocks_are_rounded_without_calibration(prune: Prune, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "gpt2", "gpt2")
    artifact = prune('[[stages]]\nkind = "round"\nbits = 4\ngroup = 32\nwhat = "blocks"\n', base)
    layout = Quantised(bits=4, group=32, columns=64, transposed=True)
    assert artifact.layout("transformer.h.0.mlp.c_fc.weight") == layout
    assert artifact.scales("transformer.wte.weight") is None
    assert sum(artifact.scales(name) is not None for name in artifact.names()) == 2 * 4


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_a_head_is_rounded_by_what_it_reads(prune: Prune, tmp_path: Path, text: Path, kind: str, tied: bool) -> None:
    base = tiny.save(tmp_path / kind, kind, tie_word_embeddings=tied)
    stage = '[[stages]]\nkind = "round"\nbits = 4\ngroup = 32\n'
    artifact = prune(stage + 'head = "gptq"\n', base)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = prepare(read_recipe(tmp_path / "recipe.toml"), tmp_path / "base").calibration[0]
    with torch.no_grad():
        states = network.base_model(ids).last_hidden_state.double()
    name = ("transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight") if tied else "lm_head.weight"
    dense = network.state_dict()[name].double()
    gram = torch.einsum("btc,btd->cd", states, states) * (2 / len(ids))
    codes, scales = slow_rounding.gptq(dense[:12].numpy(), gram.numpy(), 4, 32, damping=DAMPING)
    found = artifact.scales(name)
    assert found is not None
    grids = found[:12].double()
    steps = (artifact.tensor(name)[:12].double() / grids.repeat_interleave(32, dim=1)).round()
    alike = ((grids - torch.tensor(scales)).abs() <= 2e-3 * grids.abs()).all(dim=1).numpy()
    assert alike.mean() > 0.8, "in float32 another of two scales of nearly the same cost may win"
    assert (steps.numpy() == codes)[alike].mean() > 0.99

    def error(weight: torch.Tensor) -> float:
        return float((states @ (weight.double() - dense).T).square().sum())

    assert error(artifact.tensor(name)) < 0.7 * error(prune(stage, base).tensor(name))


def test_a_killed_pass_for_the_head_is_resumed(prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = '[[stages]]\nkind = "round"\nhead = "gptq"\n'
    base = tiny.save(tmp_path / "llama", "llama", tie_word_embeddings=True)
    whole = prune(stage, base).tensor("model.embed_tokens.weight")
    shutil.rmtree(tmp_path / "out")
    calls: list[int] = []

    def killed(view: BlockView) -> Note:
        calls.append(view.index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pass_on(view)

    monkeypatch.setattr("pruning.stages.layerwise.head.pass_on", killed)
    with pytest.raises(AssertionError, match="130"):
        prune(stage, base)
    again = prune(stage, base)
    assert calls[:3] == [0, 1, 1]
    assert torch.equal(again.tensor("model.embed_tokens.weight"), whole)


def test_a_head_is_no_part_of_the_blocks() -> None:
    with pytest.raises(ValueError, match='use what = "embeddings"'):
        Round(what="blocks", head="gptq")
