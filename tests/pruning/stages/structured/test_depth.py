import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pruning.errors import ModelRefused, RecipeError
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import RenamedWeights, WeightSource
from pruning.passes.sweep import Sweep
from pruning.stages.inputs import base_artifact
from pruning.stages.structured import depth
from tests.pruning import tiny

IDS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


def test_influence_agrees_with_a_stock_model(model: Path, tmp_path: Path) -> None:
    artifact = base_artifact(str(model), tmp_path / "cache")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    notes = Sweep(blocks, IDS, 2, tmp_path / "pass").visit(depth.measure, "measuring", depth.RUNS)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(_: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen.append((args[0], output))

    for layer in stock.model.layers:
        layer.register_forward_hook(see)
    with torch.no_grad():
        stock(input_ids=IDS)
    expected = [
        1 - float(((b * a).sum(-1) / b.norm(dim=-1) / a.norm(dim=-1)).mean()) for b, a in seen
    ]  # fmt: skip
    assert [note["influence"] for note in notes] == pytest.approx(expected, abs=1e-5)


def test_the_least_influential_go_and_of_equals_the_lower() -> None:
    assert depth.least([0.3, 0.1, 0.2, 0.1, 0.5], 2) == (1, 3)
    assert depth.least([0.1, 0.1, 0.1], 1) == (0,)
    with pytest.raises(RecipeError, match="remove = 3 would leave none of the model's 3 blocks"):
        depth.refuse_all(3, 3)


class Names(WeightSource):
    def names(self) -> list[str]:
        return ["embed", *(f"m.layers.{n}.w" for n in range(12)), "m.layers_norm.1.w"]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.tensor(len(name))


def test_remaining_blocks_are_renumbered() -> None:
    short = depth.without(Names(), "m.layers", (0, 2, 3), 12)
    assert isinstance(short, RenamedWeights)
    assert short.names() == ["embed", *(f"m.layers.{n}.w" for n in range(9)), "m.layers_norm.1.w"]
    assert short.tensor("m.layers.8.w") == len("m.layers.11.w")


def test_every_per_block_list_is_shortened() -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "c"], "eos_token_id": [1, 2], "hidden_size": 4}
    short = depth.shortened(config, (1,), 4)
    assert short == config | {"num_hidden_layers": 3, "layer_types": ["a", "a", "c"]}
    with pytest.raises(ModelRefused, match="does not state the number of blocks, 5"):
        depth.shortened(config, (1,), 5)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "opt", "gpt_neox"])
def test_the_shorter_model_loads_as_itself(kind: str, tmp_path: Path) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "model", kind, num_hidden_layers=4)), tmp_path / "cache")
    path = Blocks(base.skeleton(artifact.config), artifact).path
    source = depth.without(artifact, path, (1, 2), 4)
    blocks = Blocks(base.skeleton(depth.shortened(artifact.config, (1, 2), 4)), source)
    assert len(blocks) == 2
    blocks.check(IDS[:2])


@pytest.mark.parametrize(
    ("kind", "changes", "derived"),
    [
        ("gemma2", {}, {}),
        ("gemma3_text", {}, {"sliding_window_pattern": 3}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, {}),
        ("gpt_neo", {"num_layers": 6, "window_size": 8, "attention_types": [[["global", "local"], 3]]}, {}),
    ],
)
def test_each_block_keeps_its_kind_of_attention(
    kind: str, changes: dict[str, Any], derived: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "model", kind, num_hidden_layers=6, sliding_window=8, **changes)
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_types", None)  # as most such models are published
    config.pop("attention_layers", None)
    (folder / "config.json").write_text(json.dumps(config | derived))
    artifact = base_artifact(str(folder), tmp_path / "cache")
    whole, removed = Blocks(base.skeleton(artifact.config), artifact), (1, 4)
    short = depth.shortened(depth.listed(artifact.config, whole), removed, 6)
    blocks = Blocks(base.skeleton(short), depth.without(artifact, whole.path, removed, 6))
    whole.check(IDS[:2])
    blocks.check(IDS[:2])

    def states(model: Blocks, skipped: tuple[int, ...]) -> torch.Tensor:
        result, calls = model.capture(IDS)
        for index in range(len(model)):
            if index not in skipped:
                with model.loaded(index):
                    result = model.run(index, result, calls[index])
        return result

    assert torch.equal(states(blocks, ()), states(whole, removed))
