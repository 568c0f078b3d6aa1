"""The Fisher matrices of outputs against torch's autograd of the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.passes.fisher import OutputFishers, output_fishers
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

IDS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))


def autograd(artifact: Artifact, kind: str, names: set[str]) -> dict[str, Tensor]:
    """The mean over tokens of g g^T, g the gradient of a sequence's summed loss, from the whole model at once."""
    model = tiny.build(kind)
    model.load_state_dict({name: tensor.float() for name, tensor in artifact.tensors()}, strict=False)
    model.tie_weights()
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    for name, module in model.named_modules():
        if f"{name}.weight" in names:
            module.register_forward_hook(keep(f"{name}.weight"))
    found: dict[str, Tensor] = {}
    for ids in IDS:
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        (-logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None]).sum()).backward()
        for name, output in outputs.items():
            assert output.grad is not None
            for row in output.grad.reshape(-1, output.shape[-1]).double():
                found[name] = found.get(name, torch.zeros(())) + torch.outer(row, row) / IDS.numel()
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])  # transposed weights; tokens in one row
def test_the_matrices_are_means_of_outer_products_of_gradients(kind: str, tmp_path: Path) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "model", kind)), tmp_path / "cache")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    blocks.check(IDS[:2, :8])
    names = {name for index in range(len(blocks)) for name in blocks.linears(index)}
    found = output_fishers(blocks, IDS, tmp_path / "pass")
    expected = autograd(artifact, kind, names)
    assert expected.keys() == names
    for name in names:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found.of(name).double(), expected[name], rtol=1e-3, atol=1e-4 * scale)
    with pytest.raises(ModelRefused, match=r"idle\.weight is never reached"):
        found.of("idle.weight")
    assert isinstance(found, OutputFishers)
    assert found.seconds > 0
