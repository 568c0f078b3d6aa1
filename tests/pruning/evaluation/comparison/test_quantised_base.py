"""The quantised base: its size is predicted exactly, and only the blocks' linear layers are rounded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.evaluation.comparison import quantised_base
from pruning.stages.inputs import base_artifact
from tests.pruning import tiny


@pytest.mark.parametrize(
    ("kind", "bits", "group", "pruned"),
    [("llama", 8, 32, False), ("llama", 4, 64, True), ("gpt2", 8, 32, True), ("gpt2", 4, 64, False)],
)
def test_the_quantised_base_has_the_predicted_bytes(
    tmp_path: Path, kind: str, bits: int, group: int, pruned: bool
) -> None:
    """Also of a base with zeros, which are quantised like other weights."""
    folder = tiny.save(tmp_path / "model", kind)
    if pruned:
        tensors = load_file(folder / "model.safetensors")
        halved = {name: t * (torch.arange(t.shape[-1]) % 2) if "mlp" in name else t for name, t in tensors.items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
    base = base_artifact(str(folder), tmp_path / "base")
    before = dict(base.tensors())
    matrices = [name for name in before if ".norm" not in name and ("layers." in name or ".h." in name)]
    matrices = [name for name in matrices if before[name].dim() == 2]
    numbers = sum(before[name].numel() for name in matrices)
    wanted = base.size - int(numbers * (16 - bits - 16 / group) / 8)
    choice = quantised_base.nearest_in_size(base, wanted)
    assert choice == quantised_base.Quantisation(bits, group, wanted)
    with quantised_base.quantised(base, choice, tmp_path) as made:
        assert sorted(matrices) == [name for name in made.names() if made.scales(name) is not None]
        assert abs(made.size - wanted) < 64 * len(before) * 3  # names, and the alignment of tiny tensors
        for name, old in before.items():
            new = made.tensor(name)
            if name not in matrices:
                assert torch.equal(old, new)
                continue
            rows = new.T if kind == "gpt2" else new  # it stores its matrices transposed
            assert max(len(row.unique()) for row in rows.reshape(-1, group)) <= 2**bits
            error = ((new - old).float().square().sum() / old.float().square().sum()).item()
            assert 0 < error < {8: 1e-4, 4: 0.015}[bits]
    assert not list(tmp_path.glob("quantised-*"))
    assert all(torch.equal(old, base.tensor(name)) for name, old in before.items())
