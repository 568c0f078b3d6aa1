"""Every training step keeps its tensors on the network's device; torch's meta device plays the GPU."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.model.weights import InMemory
from pruning.recipe.training import Quantise
from pruning.stages.context import blocks_without_weights
from pruning.stages.structured.shape import TargetShape, find_structure
from pruning.stages.team import Team
from pruning.stages.training.distil.divergence import divergence
from pruning.stages.training.distil.quantised import REFIT, QuantisedStudent
from pruning.stages.training.network import Precision, language_loss, logits
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.shear import masked
from pruning.stages.training.shear.masked import MaskedStudent, MaskHooks, Masks
from pruning.stages.training.student import Student, TrainedParameters
from tests.pruning import tiny

ELSEWHERE = torch.device("meta")
TEAM = Team(device=ELSEWHERE)
PRECISION = Precision(torch.float32, "", ELSEWHERE)
IDS = torch.arange(64).view(2, 32)


@pytest.fixture(autouse=True)
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what asks for values or for a kernel, of which the meta device has neither."""
    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *arguments, fused, **options: adam(*arguments, **options))
    monkeypatch.setattr(Precision, "context", lambda self: nullcontext())
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda ids: None)


def network() -> Any:
    return tiny.build("llama").requires_grad_(False).to(ELSEWHERE)


def trained(model: Any) -> TrainedParameters:
    parameters = dict(model.named_parameters())
    zeros = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in parameters.items() if "_proj" in name}
    return TrainedParameters(parameters, zeros)


def test_the_check_detects_a_tensor_on_another_device() -> None:
    with pytest.raises(RuntimeError, match="device"):
        network().model.norm(torch.ones(2, 3, 64))


def test_language_and_distillation_and_what_is_restored() -> None:
    model, teacher = network(), network()
    optimiser = Optimiser(Student(model, trained(model)), 1e-3, 4, 0.5, TEAM)
    optimiser.step(language_loss(model, IDS, PRECISION), 1)
    optimiser.step(divergence(logits(model, IDS, PRECISION), logits(teacher, IDS, PRECISION)), 2)
    kept = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in optimiser.tensors().items()}
    optimiser.restore(InMemory(kept))
    assert {value.device for state in optimiser.adam.state.values() for value in state.values()} == {ELSEWHERE}


def test_codes_and_scales() -> None:
    model = network()
    student = QuantisedStudent(model, trained(model), Quantise(group=32), InMemory({}))
    optimiser = Optimiser(student, 1e-3, REFIT, 0.5, TEAM)
    for step in range(1, REFIT + 1):
        optimiser.step(language_loss(model, IDS, PRECISION), step)
    assert {value.device for value in student.weights().values()} == {ELSEWHERE}


def test_masks_and_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        masked, "select_trained", lambda network, embeddings: TrainedParameters(dict(network.named_parameters()), {})
    )
    model, config = network(), tiny.config("llama").to_dict()
    shape = TargetShape(
        config, find_structure(blocks_without_weights(config), {}, config), {"hidden": 48, "kv_groups": 1, "ffn": 96}
    )
    masks = Masks(shape, 0, ELSEWHERE)
    student = MaskedStudent(model, shape, masks, 1.0)
    hooks = MaskHooks(model, shape.structure)
    hooks._scales = masked.mask_scales(shape.structure, masks.sample(1))
    optimiser = Optimiser(student, 1e-3, 4, 0.5, TEAM)
    optimiser.step(language_loss(model, IDS, PRECISION) + masks.penalty(1, 2), 1)
    weights = {name: student.parameters[name].detach() for name, _ in model.named_parameters()}
    stay: dict[str, Tensor] = {
        "hidden": torch.arange(48, device=ELSEWHERE),
        "kv_groups": torch.zeros(2, 1, dtype=torch.long, device=ELSEWHERE),
        "ffn": torch.arange(96, device=ELSEWHERE).expand(2, -1),
    }
    left, _ = shape.cut(model, masked.folded(model, weights, masked.mask_scales(shape.structure, masks.decide())), stay)
    assert {left.source.tensor(name).device for name in left.source.names()} == {ELSEWHERE}
