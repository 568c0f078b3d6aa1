"""Optimal Brain Damage against its equation, with gradients by autograd of the whole model, sequence by sequence."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.recipe.recipe import read
from pruning.stages.inputs import prepare
from server.artifact.checkpoint.reader import Artifact
from tests.reference import slow

STAGES = '[[stages]]\nkind = "layerwise"\ntechnique = {{ name = "obd", sparsity = {} }}\n'


@pytest.mark.parametrize(("sparsity", "plain"), [("0.5", 0.5), ('"2:4"', (2, 4))])
def test_obd_removes_what_its_equation_says(
    sparsity: str, plain: float | tuple[int, int], recipe: Callable[[str], Path], model: Path, tmp_path: Path
) -> None:
    path = recipe(STAGES.format(sparsity))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 0
    ids = prepare(read(path), tmp_path / "base").calibration[0]
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    result = Artifact.open(tmp_path / "out")
    names = ["model.layers.0.self_attn.v_proj.weight", "model.layers.5.mlp.down_proj.weight"]
    gradients: dict[str, list[numpy.ndarray]] = {name: [] for name in names}
    for sequence in ids:
        stock.zero_grad()
        stock(input_ids=sequence[None], labels=sequence[None]).loss.backward()
        for name in names:
            gradient = stock.get_parameter(name).grad
            assert gradient is not None
            gradients[name].append(gradient.double().numpy())
    for name in names:
        weight = stock.get_parameter(name).detach()
        keep = torch.from_numpy(slow.obd_mask(weight.double().numpy(), gradients[name], plain))
        pruned = result.tensor(name).float()
        assert float(((pruned != 0) == keep).float().mean()) > 0.999  # saliencies may be equal within rounding
        assert torch.equal(pruned[pruned != 0], weight[pruned != 0]), "only a mask"
    assert result.lineage.steps[0].technique == "obd"
    assert set(result.lineage.steps[0].sparsity.values()) == {0.5}
