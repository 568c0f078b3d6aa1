from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pruning import base
from pruning.calibration import Sweep
from pruning.errors import ModelRefused, RecipeError
from pruning.inputs import base_artifact
from pruning.model import Blocks
from pruning.structured import depth
from pruning.weights import Renamed, Source
from tests.pruning import tiny

IDS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


def test_influence_is_what_a_stock_model_shows(model: Path, tmp_path: Path) -> None:
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


class Names(Source):
    def names(self) -> list[str]:
        return ["embed", *(f"m.layers.{n}.w" for n in range(12)), "m.layers_norm.1.w"]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.tensor(len(name))


def test_those_that_stay_are_numbered_anew() -> None:
    short = depth.without(Names(), "m.layers", (0, 2, 3), 12)
    assert isinstance(short, Renamed)
    assert short.names() == ["embed", *(f"m.layers.{n}.w" for n in range(9)), "m.layers_norm.1.w"]
    assert short.tensor("m.layers.8.w") == len("m.layers.11.w")


def test_every_list_of_one_value_a_block_is_cut() -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "c"], "eos_token_id": [1, 2], "hidden_size": 4}
    short = depth.shortened(config, (1,), 4)
    assert short == config | {"num_hidden_layers": 3, "layer_types": ["a", "a", "c"]}
    with pytest.raises(ModelRefused, match="does not say that the model has 5 blocks"):
        depth.shortened(config, (1,), 5)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "opt", "gpt_neox"])
def test_the_shorter_model_loads_as_itself(kind: str, tmp_path: Path) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "model", kind, num_hidden_layers=4)), tmp_path / "cache")
    path = Blocks(base.skeleton(artifact.config), artifact).path
    source = depth.without(artifact, path, (1, 2), 4)
    blocks = Blocks(base.skeleton(depth.shortened(artifact.config, (1, 2), 4)), source)
    assert len(blocks) == 2
    blocks.check(IDS[:2])
