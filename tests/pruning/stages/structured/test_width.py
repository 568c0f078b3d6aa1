"""Width: the removed units, the remaining model, loaders, and refusals before any work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.errors import ModelRefused, RecipeError
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.recipe.options import Width
from pruning.recipe.recipe import read
from pruning.stages.context import blocks_without_weights
from pruning.stages.inputs import base_artifact, prepare
from pruning.stages.structured.width import NarrowBlock, plan
from pruning.techniques.fluctuation import FLAP
from pruning.techniques.importance import AnyImportance, SecondOrder, Taylor
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny
from tests.reference import slow

pytestmark = pytest.mark.slow

Write = Callable[[str], Path]
IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
STAGE = '[[stages]]\nkind = "width"\nffn = {ffn}\nkv_groups = {kv}\nimportance = {{ name = "{name}" }}\n'
STAGE_OF = {"taylor": Taylor(), "second_order": SecondOrder(), "flap": FLAP()}
GPT2 = {"mlp.c_fc": "colwise", "mlp.c_proj": "rowwise"}


def prune(recipe: Path, folder: Path) -> Artifact:
    assert main(["prune", str(recipe), "--output", str(folder / "out"), "--base-cache", str(folder / "base")]) == 0
    return Artifact.open(folder / "out")


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


@pytest.mark.parametrize("name", STAGE_OF)
def test_the_result_is_an_ordinary_smaller_model(name: str, recipe: Write, tmp_path: Path) -> None:
    artifact = prune(recipe(STAGE.format(ffn=0.25, kv=1, name=name)), tmp_path)
    sizes = {key: artifact.config[key] for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads")}
    assert sizes == {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert artifact.config["head_dim"] == 16
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert stock.model.layers[5].self_attn.o_proj.weight.shape == (64, 32)
    torch.testing.assert_close(logits(stock), logits(tiny.loaded(artifact)), rtol=1e-4, atol=1e-5)
    [step] = artifact.lineage.steps
    assert step.technique == "width"
    assert step.options["sizes"] == {"self_attn.o_proj": 1, "mlp.down_proj": 96}
    assert step.parameters == sum(parameter.numel() for parameter in stock.parameters())


def with_zeroed(model: Path, folder: Path, units: list[int], group: int) -> Path:
    """`model` whose blocks do not use some feed-forward units and one KV group."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "down_proj" in name:
            tensor[:, units] = 0
        elif "o_proj" in name:
            tensor[:, group * 32 : group * 32 + 32] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", STAGE_OF)
def test_unused_units_go_without_changing_a_logit(name: str, recipe: Write, model: Path, tmp_path: Path) -> None:
    units = [*range(5, 20), *range(60, 77)]
    changed = with_zeroed(model, tmp_path / "zeroed", units, 1)
    path = recipe(STAGE.format(ffn=96, kv=1, name=name))
    path.write_text(path.read_text().replace(str(model), str(changed)))
    artifact = prune(path, tmp_path)
    before = logits(AutoModelForCausalLM.from_pretrained(changed, dtype=torch.float32))
    torch.testing.assert_close(logits(tiny.loaded(artifact)), before, rtol=1e-4, atol=1e-5)
    stay = [unit for unit in range(128) if unit not in units]
    original = load_file(changed / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(artifact.tensor("model.layers.2.mlp.up_proj.weight"), original[stay])


@pytest.mark.parametrize("order", ["param_mix", "vectorize"])
def test_taylor_sums_over_the_layers_of_a_group(order: str, recipe: Write, model: Path, tmp_path: Path) -> None:
    path = recipe(STAGE.format(ffn=64, kv=0, name="taylor").replace(" }", f', order = "{order}" }}'))
    artifact = prune(path, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    gradients: list[dict[str, Tensor]] = []
    for ids in prepare(read(path), tmp_path / "base").calibration[0]:
        stock.zero_grad()
        stock(input_ids=ids[None], labels=ids[None]).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in stock.named_parameters() if p.grad is not None})
    total = torch.zeros(128)
    for layer in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.4.mlp.{layer}.weight"
        matrices = [stock.get_parameter(name).detach(), *(g[name] for g in gradients)]
        weight, *each = [(m.T if layer == "down_proj" else m).double().numpy() for m in matrices]
        total += torch.from_numpy(slow.taylor(weight, each, order))
    expected = total.argsort()[64:].sort().values
    original = stock.get_parameter("model.layers.4.mlp.gate_proj.weight").detach()
    assert torch.equal(artifact.tensor("model.layers.4.mlp.gate_proj.weight").float(), original[expected])


def test_taylor_sums_over_all_heads_of_a_kv_group(recipe: Write, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "other", num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
    path = recipe(STAGE.format(ffn=96, kv=2, name="taylor"))
    path.write_text(re_based(path.read_text(), folder))
    artifact = prune(path, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = prepare(read(path), tmp_path / "base").calibration[0]
    stock(input_ids=ids, labels=ids).loss.backward()  # all sequences at once, as LLM-Pruner does it
    for block, layer in enumerate(stock.model.layers):
        weights = {name: getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo"}
        saliency = {name: (weight.detach() * weight.grad).abs() for name, weight in weights.items()}
        importance = [0.0] * 4
        for head in range(8):
            rows = slice(head * 16, head * 16 + 16)
            importance[head // 2] += float(saliency["q"][rows].sum()) + float(saliency["o"][:, rows].sum())
        for group in range(4):
            rows = slice(group * 16, group * 16 + 16)
            importance[group] += float(saliency["k"][rows].sum()) + float(saliency["v"][rows].sum())
        kept = sorted(sorted(range(4), key=importance.__getitem__)[2:])
        heads = [head * 16 + row for group in kept for head in (2 * group, 2 * group + 1) for row in range(16)]
        keys = [group * 16 + row for group in kept for row in range(16)]
        name = f"model.layers.{block}.self_attn"
        for part, chosen in (("q", heads), ("k", keys), ("v", keys)):
            assert torch.equal(artifact.tensor(f"{name}.{part}_proj.weight").float(), weights[part].detach()[chosen])
        assert torch.equal(artifact.tensor(f"{name}.o_proj.weight").float(), weights["o"].detach()[:, heads])


def test_second_order_beats_taylor_on_what_it_minimises(recipe: Write, tmp_path: Path) -> None:
    results = {}
    for name in ("taylor", "second_order"):
        (tmp_path / name).mkdir()
        artifact = prune(recipe(STAGE.format(ffn=64, kv=0, name=name)), tmp_path / name)
        base_model = tiny.loaded(Artifact.open(next((tmp_path / name / "base").glob("tiny-*"))))
        ids = prepare(read(tmp_path / "recipe.toml"), tmp_path / name / "base").calibration[0]
        results[name] = float((logits(tiny.loaded(artifact), ids) - logits(base_model, ids)).square().mean())
    assert results["second_order"] < results["taylor"]


@pytest.mark.parametrize(
    ("kind", "layer", "named"), [("llama", "mlp.down_proj", {}), ("opt", "fc2", {"fc1": "colwise", "fc2": "rowwise"})]
)
def test_flap_keeps_the_mean_of_a_layers_output_and_adds_no_bias(
    kind: str, layer: str, named: dict[str, str], recipe: Write, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "other", kind)
    path = recipe(STAGE.format(ffn=64, kv=0, name="flap") + f"plan = {inline(named)}\n")
    path.write_text(re_based(path.read_text(), folder))
    artifact = prune(path, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert set(artifact.names()) == {name for name, _ in stock.named_parameters()}, "a bias was added"
    [linear] = [m for n, m in stock.named_modules() if n.endswith(f"layers.0.{layer}")]
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    logits(stock, prepare(read(path), tmp_path / "base").calibration[0])
    inputs = torch.cat(seen)  # [tokens, 128]
    kept = slow.fluctuation(linear.weight.detach().double().numpy(), inputs.double().numpy(), 1).argsort()[64:]
    kept.sort()
    gone = [unit for unit in range(128) if unit not in kept]
    [name] = [name for name in artifact.names() if name.endswith(f"layers.0.{layer}.weight")]
    found = artifact.tensor(name).float()
    lost = linear.weight.detach()[:, gone] @ inputs[:, gone].mean(dim=0)
    if linear.bias is None:
        moment = inputs[:, kept].T @ inputs[:, kept] / len(inputs)
        moment += 0.01 * moment.diagonal().mean() * torch.eye(64)
        change = torch.outer(lost, torch.linalg.solve(moment, inputs[:, kept].mean(dim=0)))
        assert change.abs().max() > 1e-3
        expected = (linear.weight.detach()[:, kept] + change).bfloat16().float()
        torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-5)
    else:
        assert torch.equal(found, linear.weight.detach()[:, kept])
        bias = artifact.tensor(name.replace("weight", "bias")).float()
        torch.testing.assert_close(bias, (linear.bias.detach() + lost).bfloat16().float(), rtol=0.01, atol=1e-5)
        assert not torch.equal(bias, linear.bias.detach())


def test_stopped_in_the_middle_it_ends_with_the_identical_artifact(
    recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(STAGE.format(ffn=96, kv=1, name="second_order"))
    whole = prune(path, tmp_path / "whole")
    original, visited = NarrowBlock.__call__, []

    def visit(self: NarrowBlock, view: Any) -> Any:
        visited.append(view.index)
        if len(visited) == 3:
            raise KeyboardInterrupt
        return original(self, view)

    monkeypatch.setattr(NarrowBlock, "__call__", visit)
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(arguments) == 130
    assert main(arguments) == 0
    assert visited == [0, 1, 2, 2, 3, 4, 5]
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (whole.path / weights).read_bytes()


def blocks_of(kind: str, folder: Path, **changes: Any) -> tuple[Blocks, dict[str, Any]]:
    artifact = base_artifact(str(tiny.save(folder / "model", kind, **changes)), folder / "cache")
    return Blocks(base.skeleton(artifact.config), artifact), artifact.config


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "starcoder2"])
def test_groups_come_from_the_architectures_own_plan(kind: str, tmp_path: Path) -> None:
    blocks, config = blocks_of(kind, tmp_path)
    smaller, sizes = plan(Width(SecondOrder(), ffn=64, kv_groups=1), config, blocks)
    assert list(sizes.values()) == [1, 64], "attention first"
    model = base.skeleton(smaller)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in blocks.model.parameters())


@pytest.mark.parametrize(
    ("kind", "named"), [("gpt2", GPT2), ("opt", {"fc1": "colwise", "fc2": "rowwise"}), ("gpt_neox", {})]
)
@pytest.mark.parametrize("importance", STAGE_OF.values(), ids=STAGE_OF)
def test_layers_that_the_recipe_names_are_cut(
    kind: str, named: dict[str, Any], importance: AnyImportance, recipe: Write, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "other", kind)
    path = recipe(STAGE.format(ffn=96, kv=0, name=type(importance).__struct_config__.tag))
    text = re_based(path.read_text(), folder)
    path.write_text(text + f"plan = {inline(named)}\n")
    artifact = prune(path, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(stock), logits(tiny.loaded(artifact)), rtol=1e-4, atol=1e-5)


def inline(table: dict[str, str]) -> str:
    """An inline table of TOML."""
    return "{ " + ", ".join(f'"{key}" = "{value}"' for key, value in table.items()) + " }"


def re_based(text: str, folder: Path) -> str:
    """A recipe's text with the model in `folder` as its base."""
    return "\n".join(f'base = "{folder}"' if line.startswith("base") else line for line in text.splitlines()) + "\n"


@pytest.mark.parametrize(
    ("kind", "changes", "stage", "sentence"),
    [
        ("gpt2", {}, {"ffn": 64}, "plan of GPT2LMHeadModel has no feed-forward layers"),
        ("phi3", {}, {"ffn": 64}, "plan of Phi3ForCausalLM has no feed-forward layers"),
        ("gpt_neox", {}, {"kv_groups": 1}, "has no attention with separate layers for queries, keys and values"),
        ("gpt2", {}, {"ffn": 64, "plan": {"mlp.up": "colwise"}}, "the plan names mlp.up, but the linear layers of a"),
        ("llama", {}, {"kv_groups": 2}, "kv_groups = 2 would leave none of the model's 2 KV groups"),
        ("llama", {}, {"ffn": 128}, "ffn = 128 would leave 128 of the model's 128 feed-forward units"),
        ("llama", {}, {"ffn": 0.95}, "ffn = 0.95 would leave 0 of the model's 128"),
        (
            "llama",
            {"num_key_value_heads": 4},
            {"kv_groups": 1},
            "leave 3 heads in 3 of 4 KV groups, but the heads must divide the hidden size 64; allowed: 2, 3",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_before_any_work(
    kind: str, changes: dict[str, Any], stage: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    blocks, config = blocks_of(kind, tmp_path, **changes)
    with pytest.raises((RecipeError, ModelRefused), match=sentence):
        plan(Width(SecondOrder(), **stage), config, blocks)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "8 heads do not divide into its 3 KV groups"),
        ({"num_attention_heads": 6}, "refuses config.json: The hidden size .64. is not a multiple of"),
    ],
)
def test_heads_that_do_not_divide_the_hidden_size_are_refused(changes: dict[str, int], sentence: str) -> None:
    config = tiny.config("llama").to_dict() | changes
    with pytest.raises(ModelRefused, match=sentence) as caught:
        plan(Width(SecondOrder(), kv_groups=1), config, blocks_without_weights(config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ['kind = "depth"\nremove = 5\n', 'kind = "width"\nffn = 96\nkv_groups = 2\n'])
def test_an_impossible_stage_is_refused_before_any_earlier_stage_runs(
    stage: str, recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    importance = 'importance = { name = "taylor" }\n' if "width" in stage else ""
    path = recipe(f'[[stages]]\nkind = "depth"\nremove = 1\n[[stages]]\n{stage}{importance}')
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(arguments) == 2
    assert re.search("would leave none of the model's (5 blocks|2 KV groups)", capsys.readouterr().err)
    assert not (tmp_path / "out.work" / "stage-0").exists(), "the first stage was begun"


def test_a_width_that_is_rounded_says_so_once(recipe: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert prune(recipe(STAGE.format(ffn=0.2, kv=0, name="taylor")), tmp_path).config["intermediate_size"] == 96
    assert caplog.text.count("ffn = 0.2 of 128 units: 96 remain, the nearest multiple of 32") == 1


def test_a_recipe_that_removes_nothing_is_refused(recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe('[[stages]]\nkind = "width"\nimportance = { name = "taylor" }\n')
    assert main(["prune", str(path), "--output", "none"]) == 2
    assert "nothing to remove: give ffn, kv_groups or both" in capsys.readouterr().err


def test_the_configuration_stays_readable_json(recipe: Write, tmp_path: Path) -> None:
    prune(recipe(STAGE.format(ffn=64, kv=0, name="second_order")), tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 64
