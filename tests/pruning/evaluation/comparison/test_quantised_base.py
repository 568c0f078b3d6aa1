"""The quantised base: its size is predicted exactly, and embeddings are rounded too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.evaluation.comparison import quantised_base
from pruning.evaluation.comparison.quantised_base import Quantisation
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.layouts import Quantised
from tests.pruning import tiny


@pytest.mark.parametrize(
    ("kind", "bits", "embedding_bits", "group", "pruned"),
    [
        ("llama", 8, 8, 32, False),
        ("llama", 6, 8, 32, True),
        ("llama", 3, 6, 64, False),
        ("gpt2", 5, 5, 64, True),
        ("gpt2", 4, 6, 64, False),
    ],
)
def test_the_quantised_base_has_the_predicted_bytes(
    tmp_path: Path, kind: str, bits: int, embedding_bits: int, group: int, pruned: bool
) -> None:
    """Also of a base with zeros, which are quantised like other weights."""
    folder = tiny.save(tmp_path / "model", kind)
    if pruned:
        tensors = load_file(folder / "model.safetensors")
        halved = {name: t * (torch.arange(t.shape[-1]) % 2) if "mlp" in name else t for name, t in tensors.items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
    base = base_artifact(str(folder), tmp_path / "base")
    before = dict(base.tensors())
    wanted = (bits, embedding_bits, group)
    [choice] = [
        one for one in quantised_base.quantisations(base) if (one.bits, one.embedding_bits, one.group) == wanted
    ]
    matrices = [name for name, weight in before.items() if weight.dim() == 2]
    with quantised_base.quantised(base, choice, tmp_path) as made:
        assert sorted(matrices) == [name for name in made.names() if made.scales(name) is not None]
        assert abs(made.size - choice.bytes) < 64 * len(before) * 3  # names, and the alignment of tiny tensors
        for name, old in before.items():
            new = made.tensor(name)
            if name not in matrices:
                assert torch.equal(old, new)
                continue
            own = bits if "layers." in name or ".h." in name else embedding_bits
            assert isinstance(layout := made.layout(name), Quantised)
            assert (layout.bits, layout.group) == (own, group)
            error = ((new - old).float().square().sum() / old.float().square().sum()).item()
            assert 0 < error < {8: 1e-4, 6: 1e-3, 5: 4e-3, 4: 0.02, 3: 0.08}[own]
    assert not list(tmp_path.glob("quantised-*"))
    assert all(torch.equal(old, base.tensor(name)) for name, old in before.items())


def test_the_rival_fits_and_is_the_one_of_least_expected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [
        Quantisation(8, 8, 128, 137, 0.01),
        Quantisation(8, 6, 128, 131, 0.04),
        Quantisation(6, 8, 32, 116, 0.09),
        Quantisation(4, 8, 128, 84, 2.0),
        Quantisation(4, 6, 32, 83, 1.4),
    ]
    monkeypatch.setattr(quantised_base, "quantisations", lambda _: every)
    chosen = [quantised_base.nearest_in_size(None, size) for size in (130, 120, 83, 10)]  # type: ignore[arg-type]
    assert chosen == [every[1], every[2], every[4], every[4]]
    assert chosen[1].name == "base, 6 bits, embeddings 8 in groups of 32"
