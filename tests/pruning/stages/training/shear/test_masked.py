"""A model cut by its masks equals the masked network in stock transformers; what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pruning.errors import ModelRefused, RecipeError
from pruning.model.weights import InMemory
from pruning.recipe.training import Shear
from pruning.stages.context import StageContext, StageModel, blocks_without_weights
from pruning.stages.inputs import Inputs
from pruning.stages.structured.coupled_layers import CoupledLayers
from pruning.stages.structured.shape import Structure, TargetShape, find_structure
from pruning.stages.training.network import load
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.shear.hard_concrete import probability
from pruning.stages.training.shear.masked import MaskedStudent, MaskHooks, Masks, cut_by, decided
from pruning.stages.training.shear.shearing import apply, check, prove
from tests.pruning import tiny

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
KINDS: tuple[dict[str, Any], ...] = ({"layers": 2}, {"hidden": 48}, {"kv_groups": 1}, {"ffn": 96})
TIED = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
FULL = {"layer_types": ["full_attention"] * 3}
ALL = {"layers": 2, "hidden": 48, "kv_groups": 1, "ffn": 64}


def given(kind: str, **changes: Any) -> tuple[StageModel, nn.Module]:
    """A tiny random model of three blocks, with biases and norms that are not what they are at the start."""
    network = tiny.build(kind, num_hidden_layers=3, **changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return StageModel(network.config.to_dict(), InMemory(named)), network


def shape_of(model: StageModel, **target: int) -> TargetShape:
    """The target shape of a model."""
    return TargetShape(model.config, find_structure(blocks_without_weights(model.config), {}, model.config), target)


def stock(model: StageModel, folder: Path) -> Tensor:
    """What stock transformers makes of a model that is written to a directory."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config))
    tensors = {name: model.source.tensor(name).contiguous() for name in model.source.names()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    loaded: Any
    report: Any
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)  # type: ignore[misc]
    assert not report["missing_keys"] - {"lm_head.weight"}
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.no_grad():
        result: Tensor = loaded(input_ids=IDS, use_cache=False).logits
    return result


@pytest.mark.parametrize(
    ("kind", "changes", "target"),
    [
        ("llama", {"tie_word_embeddings": False}, ALL),
        ("llama", TIED, ALL),
        ("qwen2", FULL, ALL),
        ("qwen3", FULL, ALL),
        ("starcoder2", {}, {"layers": 2, "kv_groups": 1, "ffn": 64}),  # its norms subtract the mean
        *[("llama", TIED, target) for target in KINDS],
    ],
)
def test_stock_transformers_gives_the_logits_of_the_masked_network(
    kind: str, changes: dict[str, Any], target: dict[str, Any], tmp_path: Path
) -> None:
    model, original = given(kind, **changes)
    shape, network = shape_of(model, **target), load(model, torch.float32)
    prove(model, shape, IDS)
    torch.manual_seed(1)
    masks = decided(shape, {name: torch.randn(shape.structure.per_layer(name)) for name in target})
    cut, _ = cut_by(masks, shape, network, dict(network.named_parameters()))
    MaskHooks(network, shape.structure).use(masks)
    with torch.no_grad():
        masked = network(input_ids=IDS, use_cache=False).logits
        assert (masked - original(input_ids=IDS, use_cache=False).logits).abs().max() > 0.1
    full = {"layers": 3, "hidden": 64, "kv_groups": 2, "ffn": 128} | target
    heads = {"num_attention_heads": 2 * full["kv_groups"], "num_key_value_heads": full["kv_groups"]}
    sizes = {"num_hidden_layers": full["layers"], "hidden_size": full["hidden"], "intermediate_size": full["ffn"]}
    assert cut.config.items() >= (heads | sizes).items()
    torch.testing.assert_close(stock(cut, tmp_path / "cut"), masked, rtol=1e-4, atol=1e-5)


def test_without_masks_the_network_is_the_model() -> None:
    model, original = given("llama")
    network = load(model, torch.float32)
    hooks = MaskHooks(network, shape_of(model, **ALL).structure)
    hooks.use({})
    with torch.no_grad():
        assert torch.equal(network(input_ids=IDS).logits, original(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("kind", "target", "sentence"),
    [
        (
            "gemma",
            {"hidden": 48},
            "gemma model cannot be cut to hidden = 48: its logits would differ by .* from those with",
        ),
        ("starcoder2", {"hidden": 48}, "a starcoder2 model cannot be cut to hidden = 48"),
        ("olmo", {"hidden": 48, "ffn": 64}, "an? olmo model cannot be cut to hidden = 48, ffn = 64"),
        ("phi3", {"layers": 2}, "plan of Phi3ForCausalLM has no attention with separate layers"),
        ("gpt2", {"layers": 2}, "config.json has no hidden_size"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused_before_any_work(
    kind: str, target: dict[str, Any], sentence: str, inputs: Inputs, tmp_path: Path
) -> None:
    model, _ = given(kind)
    stage = Shear(tokens=128, length=32, batch=4, held_out=2, **target)
    with pytest.raises(ModelRefused, match=sentence):
        apply(stage, model, StageContext(inputs, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            {"layers": 3},
            "layers = 3 removes none of the model's 3 layers: choose a smaller number, or leave layers",
        ),
        ({"hidden": 64}, "hidden = 64 removes none of the model's 64 hidden dimensions"),
        ({"kv_groups": 2}, "kv_groups = 2 removes none of the model's 2 KV groups"),
        ({"ffn": 160}, "ffn = 160 removes none of the model's 128 feed-forward units"),
        (
            {"hidden": 50},
            "hidden = 50 with 4 heads in 2 KV groups: transformers requires the heads to divide the hidden size; "
            "allowed: a multiple of 4 for hidden, or for kv_groups 1",
        ),
        ({"hidden": 49, "kv_groups": 1}, "allowed: a multiple of 2 for hidden, or for kv_groups none"),
    ],
)
def test_an_impossible_target_is_refused(target: dict[str, Any], sentence: str, inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=sentence):
        check(Shear(tokens=128, **target), inputs.base.config, StageContext(inputs, tmp_path))
    assert not list(tmp_path.iterdir())


def test_layers_called_by_keyword_are_refused() -> None:
    model, _ = given("llama")
    network = load(model, torch.float32)
    MaskHooks(network, shape_of(model, **ALL).structure)
    with pytest.raises(ModelRefused, match="norms are called by keyword, so their inputs cannot be masked"):
        network.get_submodule("model.norm")(hidden_states=torch.ones(1, 1, 64))


def test_masks_meet_the_target_and_keep_useful_units() -> None:
    group = CoupledLayers(("up",), "down", 20)
    structure = Structure("blocks", {"layers": 2, "hidden": 40, "ffn": 20}, {"ffn": group}, {}, (), (), "head", False)
    shape = TargetShape({}, structure, {"hidden": 30, "ffn": 10})
    masks = Masks(shape, seed=0)
    # at the paper's rate of 1 so few steps overshoot, and what has sunk to the limit is not found again
    student = MaskedStudent(nn.ModuleList([nn.Linear(2, 2)]), shape, masks, mask_learning_rate=0.1)
    optimiser = Optimiser(student, learning_rate=1e-4, steps=200, warmup=0.1)
    torch.manual_seed(0)
    useful = {"hidden": torch.randperm(40) < 30, "ffn": torch.stack([torch.randperm(20) < 10 for _ in range(2)])}
    for step in range(1, 201):
        chosen = masks.sample(step)
        loss = sum(((1 - chosen[kind]) * useful[kind]).sum() * 0.1 for kind in useful)
        assert isinstance(loss, Tensor)
        optimiser.step(loss + masks.penalty(step, 40), step)
    expected = {kind: probability(value).mean().item() for kind, value in masks.log_alpha.items()}
    assert expected == pytest.approx({"hidden": 0.75, "ffn": 0.5}, abs=0.05)
    for kind, mask in masks.decide().items():
        assert torch.equal(mask > 0, useful[kind]), kind
        assert mask[useful[kind]].min() > 0.8
