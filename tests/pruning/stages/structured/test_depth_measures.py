"""Depth by angular distance and by perplexity, against stock models with blocks taken out."""

import json
from collections.abc import Callable
from math import acos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.recipe.recipe import read
from pruning.stages.inputs import base_artifact, prepare
from pruning.stages.structured import depth
from pruning.stages.structured.angle import straightest
from pruning.stages.structured.trials import RemovalTrials
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

Write = Callable[[str], Path]
STAGE = '[[stages]]\nkind = "depth"\nremove = {}\nby = "{}"\nsequences = 3\n'


def prune(recipe: Path, folder: Path) -> Artifact:
    assert main(["prune", str(recipe), "--output", str(folder / "out"), "--base-cache", str(folder / "base")]) == 0
    return Artifact.open(folder / "out")


def ids_of(recipe: Path, folder: Path) -> Tensor:
    return prepare(read(recipe), folder / "base").calibration[0]


def test_the_run_with_the_least_angle_goes(recipe: Write, model: Path, tmp_path: Path) -> None:
    path = recipe(STAGE.format(2, "angle"))
    artifact = prune(path, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    seen: list[Tensor] = []

    def see(_: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(args[0][:, -1])
        if len(seen) == 6:
            seen.append(output[:, -1])

    for layer in stock.model.layers:
        layer.register_forward_hook(see)
    with torch.no_grad():
        stock(input_ids=ids_of(path, tmp_path))
    angles = []
    for start in range(5):
        pairs = zip(seen[start].double(), seen[start + 2].double(), strict=True)
        turns = [acos(float(a @ b / a.norm() / b.norm())) / pi for a, b in pairs]
        angles.append(sum(turns) / len(turns))
    start = angles.index(min(angles))
    assert artifact.lineage.steps[0].removed_blocks == (start, start + 1)
    assert artifact.config["num_hidden_layers"] == 4


def test_derived_kinds_of_attention_are_written_to_the_configuration(
    recipe: Write, model: Path, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "gemma", "gemma2", num_hidden_layers=5)
    config = json.loads((folder / "config.json").read_text())
    kinds = config.pop("layer_types")
    (folder / "config.json").write_text(json.dumps(config))
    path = recipe(STAGE.format(1, "influence"))
    path.write_text(path.read_text().replace(str(model), str(folder)))
    artifact = prune(path, tmp_path)
    (removed,) = artifact.lineage.steps[0].removed_blocks
    assert artifact.config["layer_types"] == kinds[:removed] + kinds[removed + 1 :]


def test_a_model_whose_blocks_depend_on_their_numbers_is_refused(
    recipe: Write, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(depth.CHOOSE, "influence", lambda *_: ((1,), []))
    folder = tiny.save(tmp_path / "gpt2", "gpt2", num_hidden_layers=5, scale_attn_by_inverse_layer_idx=True)
    path = recipe(STAGE.format(1, "influence"))
    path.write_text(path.read_text().replace(str(model), str(folder)))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 2
    assert "transformer.h.2 computes something else as block 1" in capsys.readouterr().err


def test_the_first_of_equal_runs_goes() -> None:
    assert straightest([torch.ones(2, 3)] * 5, 3) == (0, 1, 2)
    turned = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    assert straightest([turned[0], turned[1], turned[1], turned[0]], 1) == (1,)
    assert straightest([turned[0], turned[1], turned[1], turned[0]], 3) == (0, 1, 2)


def slow_removal(model: Path, ids: Tensor, count: int) -> list[tuple[int, float]]:
    """Greedy removal on the whole stock model, by its own loss: each block that goes, and the perplexity after it."""
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    layers = list(stock.model.layers)
    removed: list[tuple[int, float]] = []
    for _ in range(count):
        perplexities = {}
        for candidate in range(len(layers)):
            gone = {candidate, *(index for index, _ in removed)}
            if len(gone) == len(removed):
                continue
            stock.model.layers = nn.ModuleList(layer for index, layer in enumerate(layers) if index not in gone)
            stock.config.num_hidden_layers = len(stock.model.layers)
            with torch.no_grad():
                losses = [stock(input_ids=row[None], labels=row[None], use_cache=False).loss for row in ids]
            perplexities[candidate] = float(torch.stack(losses).double().mean().exp())
        best = min(perplexities, key=perplexities.__getitem__)
        removed.append((best, perplexities[best]))
    return removed


def test_blocks_go_one_after_another_by_perplexity(
    recipe: Write, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(STAGE.format(3, "perplexity"))
    original, tried = RemovalTrials._try, []

    def stopping(self: RemovalTrials, *args: Any) -> Any:
        tried.append(len(args[3]))
        if len(tried) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(RemovalTrials, "_try", stopping)
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(arguments) == 130
    artifact = prune(path, tmp_path)
    assert tried == [0, 1, 1, 2], "a removal that was done was tried again"
    expected = slow_removal(model, ids_of(path, tmp_path)[:3], 3)
    [step] = artifact.lineage.steps
    assert step.removed_blocks == tuple(sorted(block for block, _ in expected))
    assert step.options == {"remove": 3, "by": "perplexity", "sequences": 3}
    assert artifact.config["num_hidden_layers"] == 3


def test_the_noted_perplexity_is_without_the_block(recipe: Write, model: Path, tmp_path: Path) -> None:
    artifact = base_artifact(str(model), tmp_path / "base")
    ids = ids_of(recipe(STAGE.format(2, "perplexity")), tmp_path)[:2]
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    blocks.check(ids[:, :8])
    notes = RemovalTrials(blocks, ids, tmp_path / "trials").remove(2)
    expected = slow_removal(model, ids, 2)
    assert [note["block"] for note in notes] == [block for block, _ in expected]
    assert [note["perplexity"] for note in notes] == pytest.approx([value for _, value in expected], rel=1e-4)
