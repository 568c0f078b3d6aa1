"""The off-grid copy computes the same function, with weights on no grid."""

from pathlib import Path

import pytest
import torch

from pruning.errors import ModelRefused
from pruning.model import base as bases
from pruning.model.off_grid import moved
from pruning.model.weights import Overlay, write_file
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact, find_base
from tests.pruning import tiny


def logits(artifact: Artifact, folder: Path, changed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits in float32 with some weights replaced."""
    write_file(folder / "changed", {"unused": torch.zeros(1), **changed})
    model = bases.load(artifact.config, Overlay(artifact, [folder / "changed"]), torch.float32)
    ids = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_the_function_stays_and_the_grid_goes(kind: str, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model", kind)
    base = base_artifact(str(source), tmp_path / "cache")
    draw = torch.Generator().manual_seed(0)
    changed: dict[str, torch.Tensor] = {}
    for number in range(base.config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        weights = {name: base.tensor(name).float() for name in base.names() if name.startswith(layer)}
        changed |= moved(weights, layer, draw, base.config)
    before, after = logits(base, tmp_path, {}), logits(base, tmp_path, changed)
    assert ((after - before).norm() / before.norm()).item() < 1e-3
    for name, weight in changed.items():
        if weight.dim() == 2:
            assert ((weight / base.tensor(name).float()).std() > 0.05).item(), f"{name} kept its columns"


def test_a_recipe_prunes_the_copy_and_its_record_says_so(tmp_path: Path) -> None:
    reference, cache = str(tiny.save(tmp_path / "model")), tmp_path / "cache"
    base, copy = base_artifact(reference, cache), base_artifact(f"off-grid:{reference}", cache)
    record = copy.lineage.base
    assert (record.name, record.note) == (f"{base.lineage.base.name}, off-grid copy", "off-grid copy")
    assert record.digest != base.lineage.base.digest
    assert find_base(cache, record.digest).path == copy.path
    name = "model.layers.1.mlp.down_proj.weight"
    assert copy.tensor(name).dtype == torch.bfloat16
    assert not torch.equal(copy.tensor(name), base.tensor(name))
    assert torch.equal(copy.tensor("model.embed_tokens.weight"), base.tensor("model.embed_tokens.weight"))
    made = (copy.path / "lineage.json").stat().st_mtime_ns
    assert base_artifact(f"off-grid:{reference}", cache).path == copy.path
    assert (copy.path / "lineage.json").stat().st_mtime_ns == made


def test_a_model_with_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"an off-grid copy is made of models with the layers of Llama"):
        base_artifact(f"off-grid:{tiny.save(tmp_path / 'model', 'gpt2')}", tmp_path / "cache")
