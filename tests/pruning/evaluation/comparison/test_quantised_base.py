"""The quantised base: its size is predicted exactly, and embeddings are rounded too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.evaluation.comparison import quantised_base
from pruning.evaluation.comparison.quantised_base import Codes
from pruning.stages.inputs import base_artifact
from pruning.techniques.mathematics.rounding import round_groups
from server.artifact.checkpoint.layouts import Quantised
from tests.pruning import tiny


@pytest.mark.parametrize(
    ("kind", "codes", "embedding_codes", "group", "pruned"),
    [
        ("llama", Codes(8), Codes(8), 32, False),
        ("llama", Codes(6), Codes(8), 32, True),
        ("llama", Codes(4, True), Codes(6), 64, False),
        ("gpt2", Codes(5, True), Codes(5, True), 64, False),
        ("gpt2", Codes(3), Codes(6), 64, False),
    ],
)
def test_the_quantised_base_has_the_predicted_bytes(
    tmp_path: Path, kind: str, codes: Codes, embedding_codes: Codes, group: int, pruned: bool
) -> None:
    """Also of a base with zeros, which are quantised like other weights."""
    folder = tiny.save(tmp_path / "model", kind)
    if pruned:
        tensors = load_file(folder / "model.safetensors")
        halved = {name: t * (torch.arange(t.shape[-1]) % 2) if "mlp" in name else t for name, t in tensors.items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
    base = base_artifact(str(folder), tmp_path / "base")
    before = dict(base.tensors())
    wanted = (codes, embedding_codes, group)
    [choice] = [
        one for one in quantised_base.quantisations(base) if (one.codes, one.embedding_codes, one.group) == wanted
    ]
    matrices = [name for name, weight in before.items() if weight.dim() == 2]
    with quantised_base.quantised(base, choice, tmp_path) as made:
        assert sorted(matrices) == [name for name in made.names() if made.scales(name) is not None]
        assert abs(made.size - choice.bytes) < 64 * len(before) * 4  # names, and the alignment of tiny tensors
        for name, old in before.items():
            new = made.tensor(name)
            if name not in matrices:
                assert torch.equal(old, new)
                continue
            own = codes if "layers." in name or ".h." in name else embedding_codes
            assert isinstance(layout := made.layout(name), Quantised)
            assert (layout.bits, layout.asymmetric, layout.group) == (*own, group)
            error = ((new - old).float().square().sum() / old.float().square().sum()).item()
            assert 0 < error < {8: 1e-4, 6: 1e-3, 5: 4e-3, 4: 0.02, 3: 0.08}[own.bits]
    assert not list(tmp_path.glob("quantised-*"))
    assert all(torch.equal(old, base.tensor(name)) for name, old in before.items())


def on_a_grid(folder: Path) -> Path:
    """A model whose blocks lie on an asymmetric grid of 4 bits in groups of 32."""
    tensors = load_file(tiny.save(folder) / "model.safetensors")
    for name, weight in tensors.items():
        if weight.dim() == 2 and "layers" in name:
            round_groups(weight, torch.ones(weight.shape[1]), 4, 32, asymmetric=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_rival_fits_and_loses_least(tmp_path: Path) -> None:
    """Of a base that lies on a grid it is that grid, where it fits."""
    base = base_artifact(str(tiny.save(tmp_path / "model")), tmp_path / "base")
    every = {choice.bytes for choice in quantised_base.quantisations(base)}
    large, small = (quantised_base.nearest_in_size(base, size) for size in (max(every), min(every)))
    assert (large.codes, large.embedding_codes, large.group) == (Codes(8), Codes(8), 32)
    assert small.codes.bits == 3
    assert small.bytes <= min(every) * 1.02
    grid = base_artifact(str(on_a_grid(tmp_path / "grid")), tmp_path / "base")
    found = quantised_base.nearest_in_size(grid, large.bytes)
    assert (found.codes, found.embedding_codes, found.group) == (Codes(4, True), Codes(8), 32)
    assert found.name == "base, 4 bits asymmetric, embeddings 8 bits in groups of 32"
